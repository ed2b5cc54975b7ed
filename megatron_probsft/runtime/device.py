"""The device that this process computes on: the only place that chooses between GPU and CPU."""

from __future__ import annotations

import resource

import torch


def has_gpu() -> bool:
    """True where CUDA can be used; everything runs on the CPU otherwise."""
    return torch.cuda.is_available()


def gpu_count() -> int:
    """The number of GPUs of this machine that this process may use; 0 without any."""
    return torch.cuda.device_count()


def current_device() -> torch.device:
    """The device for this rank's tensors: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def device_name() -> str:
    """The GPU's name as its driver gives it, or `cpu`."""
    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def peak_memory_bytes() -> int:
    """The most that was in use so far on this rank: of GPU tensors, or without a GPU of the process."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB


def random_state() -> torch.Tensor:
    """The state of the device's random generator; without a GPU the CPU's."""
    return torch.cuda.get_rng_state() if has_gpu() else torch.get_rng_state()


def restore_random_state(state: torch.Tensor) -> None:
    """Set the GPU's generator to a `random_state`; without a GPU the caller sets torch's own."""
    if has_gpu():
        torch.cuda.set_rng_state(state)
