"""What the current device is, and how much of its memory was in use."""

from __future__ import annotations

import resource

import torch


def device_name() -> str:
    """The GPU's name as its driver gives it, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_memory_bytes() -> int:
    """The most that was in use so far on this rank: of GPU tensors, or without a GPU of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB
