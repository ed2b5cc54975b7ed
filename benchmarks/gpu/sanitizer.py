"""NVIDIA's compute-sanitizer on the kernels at small shapes: accesses out of bounds, races."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.kit.place import NotHereError, Place, WrongError

FOUND = 86
"""The exit status that the tool is asked to give for errors it has found."""


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    return {tool: functools.partial(_check, place, tool) for tool in ("memcheck", "racecheck")}


def _check(place: Place, tool: str) -> dict[str, Any]:
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None or place.small:
        raise NotHereError("no GPU here" if place.small else "compute-sanitizer is not installed")
    command = [
        program, "--tool", tool, "--error-exitcode", str(FOUND), "--kernel-regex", "kns=_kernel",
        sys.executable, "-m", "benchmarks.gpu.kit.small_kernels",
    ]  # fmt: skip
    # Each tensor an allocation of its own: a step beyond its end is then a step out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    summary = said[-1].strip("= ") if said else "nothing was said"
    if done.returncode == FOUND:
        raise WrongError(summary)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-200:]}")
    return {"result": summary}
