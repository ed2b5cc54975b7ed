"""This module alone names the device that a process computes on, a GPU or the CPU."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def has_gpu() -> bool:
    """Return True where CUDA can be used; everything runs on the CPU otherwise."""
    return torch.cuda.is_available()


def gpu_count() -> int:
    """Return how many GPUs this process may use."""
    return torch.cuda.device_count()


def current_device() -> torch.device:
    """Return the device for this rank's tensors: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def use_device(device: torch.device) -> None:
    """Let the calling thread compute on this device, of those that `current_device` returns."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def even_length(*, gpu: bool | None = None) -> int:
    """Return what the length of a pack should be a multiple of: a GPU's kernels work on tiles of 128 rows.

    gpu: whether the run's processes have GPUs; None: as this one.
    """
    return 128 if (has_gpu() if gpu is None else gpu) else 1


def host_tensor(array: np.ndarray) -> torch.Tensor:
    """Return the array as a tensor on the host; in pinned memory, where a GPU copies it while it computes."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if has_gpu() else tensor


class ToHost:
    """A tensor on its way to the host: nothing waits for it before it is read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)  # from a GPU: into pinned memory
        self._arrived = torch.cuda.current_stream().record_event() if tensor.is_cuda else None

    def tolist(self) -> list[float]:
        """Return the values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.tolist()


def device_name() -> str:
    """Return the GPU's name as its driver gives it, or `cpu`."""
    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def peak_memory_bytes() -> int:
    """Return the most memory in use so far: by this rank's GPU tensors, or by the process without a GPU."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB


def random_state() -> torch.Tensor:
    """Return the state of the device's random generator; without a GPU that of the CPU."""
    return torch.cuda.get_rng_state() if has_gpu() else torch.get_rng_state()


def restore_random_state(state: torch.Tensor) -> None:
    """Set the GPU's generator to a `random_state`; without a GPU the caller sets torch's generator anyway."""
    if has_gpu():
        torch.cuda.set_rng_state(state)


@contextlib.contextmanager
def exact_float32_products() -> Iterator[None]:
    """Let matrix products of float32 keep all 23 bits within this context; after it all is as before.

    GPUs may round their factors to TF32's 10 bits: NVIDIA's containers ask for it with the variable
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, programs with `torch.set_float32_matmul_precision`.
    """
    backends: Any = torch.backends
    # torch 2.8 has no newer names
    places: list[Any] = [backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None)]
    newer = [(each, each.fp32_precision) for each in places if hasattr(each, "fp32_precision")]
    older: str | None = None
    with contextlib.suppress(RuntimeError):  # where somebody set it by the newer names only
        older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # sets both
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for each, precision in newer:
            each.fp32_precision = precision
