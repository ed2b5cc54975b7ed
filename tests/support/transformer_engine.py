"""A process in which Megatron-Core imports the stand-in for Transformer Engine, and the trainer uses it.

Megatron-Core looks for Transformer Engine when it is imported, so it takes a process of its own:
`in_transformer_engine` calls a function in one, `run_tests` runs tests of this suite in one, for which this
module is a plugin of pytest.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "te_stand_in"


def in_transformer_engine(version: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in such a process, with the stand-in for this version."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "call"
        file.write_bytes(pickle.dumps((function, args)))
        _run(version, "-m", __name__, str(file))
        return pickle.loads(file.read_bytes())


def run_tests(version: str, *arguments: str) -> str:
    """What pytest prints about tests of this suite that ran in such a process; all of them passed."""
    options = ["-q", "--no-header", "--size", "all", "-p", __name__, "-p", "no:xdist"]
    named = [
        argument.encode("ascii", "backslashreplace").decode() for argument in arguments
    ]  # as pytest does
    return _run(version, "-m", "pytest", *options, *named)


def _run(version: str, *arguments: str) -> str:
    paths = os.pathsep.join(map(str, (STAND_IN, ROOT)))
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths, "TE_STAND_IN_VERSION": version, "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert ended.returncode == 0, f"{ended.stdout[-20_000:]}\n{ended.stderr[-5_000:]}"
    return ended.stdout


def pytest_configure() -> None:
    """Let the model be built as on a GPU, but on the device that is there; in float32 too."""
    from megatron_probsft.runtime.megatron_patches import compile_decorators

    with compile_decorators.without_compilation():  # Megatron-Core's fusions stay Python
        from megatron_probsft.models import build

    assert build.HAVE_TE, "PYTHONPATH does not begin with tests/support/te_stand_in"
    build.has_gpu = lambda: True
    build.transformer_engine_computes = lambda dtype: True


if __name__ == "__main__":
    pytest_configure()
    called, given = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[1]).write_bytes(pickle.dumps(called(*given)))
