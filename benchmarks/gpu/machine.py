"""The machine: the card with its driver and clocks, and the versions of everything that is measured."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.kit.place import Place

LIBRARIES = (
    "torch", "triton", "transformers", "megatron-core", "transformer-engine", "flash-attn", "flash-attn-3",
    "liger-kernel", "quack-kernels", "cut-cross-entropy", "nvidia-cutlass-dsl", "nvidia-nccl-cu13",
    "nvidia-cudnn-cu13", "numpy",
)  # fmt: skip
QUERY = (
    "name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem", "clocks.sm",
    "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active",
)  # fmt: skip


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    return {"machine": lambda: _machine(place)}


def _machine(place: Place) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available() and not place.small
    versions = {name: found for name in LIBRARIES if (found := _version(name))}
    record: dict[str, Any] = {
        "gpu": gpu, "python": platform.python_version(), "versions": versions, "cuda": torch.version.cuda,
        "nvidia_smi": nvidia_smi(), "kernel": platform.release(), "cpu_threads": torch.get_num_threads(),
    }  # fmt: skip
    name = "CPU, tiny shapes: no time of it means anything"
    if "name" in record["nvidia_smi"] and not place.small:
        name = f"{record['nvidia_smi']['name']} is not used, as this torch has no CUDA: {name}"
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        name = properties.name
        record |= {
            "compute_capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        }
    driver = record["nvidia_smi"].get("driver_version")
    words = [name, *([f"driver {driver}"] if driver else []), *(f"{k} {v}" for k, v in versions.items())]
    return record | {"device": name, "result": ", ".join(words)}


def nvidia_smi() -> dict[str, str]:
    """Return the state of torch's card, else of the first, by nvidia-smi; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        command += _card()
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return dict(zip(QUERY, done.stdout.splitlines()[0].split(", "), strict=True))
    except (OSError, RuntimeError, subprocess.SubprocessError, IndexError, ValueError):
        return {}  # RuntimeError: a row has broken CUDA for its process


def _card() -> list[str]:
    """Return the option for torch's card: CUDA counts visible ones only, not in nvidia-smi's order."""
    import torch

    if not torch.cuda.is_available():
        return []
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return [] if uuid is None else [f"--id=GPU-{uuid}"]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
