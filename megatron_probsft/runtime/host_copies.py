"""Copies of tensors in the memory of the host, made beside the computing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from megatron_probsft.runtime.device import has_gpu
from megatron_probsft.runtime.errors import UserError

_ALIGNMENT = 64


class HostCopies:
    """Copies of a GPU's tensors in pinned memory, which is kept for the next ones; on the CPU plain copies.

    A stream of its own makes them while the training goes on. What may overwrite the tensors waits for it on
    the GPU, not on the host: each optimizer given to `guard` does, before its next step.
    """

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._stream: Any = None
        self._taken: Any = None

    def take(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Begin to copy the tensors as they are now, and return the copies: they are there after `wait`.

        The copies of the call before are overwritten, with a GPU.

        Raises:
            UserError: the host has too little memory that can be pinned.
        """
        if not has_gpu():
            return [tensor.clone() for tensor in tensors]
        sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
        starts = [0, *itertools.accumulate(sizes)]
        self._reserve(starts.pop())
        assert self._memory is not None
        # Each with a storage of its own, since torch.save writes storages.
        copies = [
            storage_of_its_own(self._memory[start : start + tensor.nbytes].view(tensor.dtype)).view(
                tensor.shape
            )
            for start, tensor in zip(starts, tensors, strict=True)
        ]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            self._taken = self._stream.record_event()
        return copies

    def wait(self) -> None:
        """Wait on the host until the copies are there; any thread may call it."""
        if self._taken is not None:
            with torch.cuda.device(self._stream.device):  # else a thread's is GPU 0, which gets a context
                self._taken.synchronize()

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Let each step of this optimizer wait, on the GPU, until the copies have been taken."""
        optimizer.register_step_pre_hook(lambda *_: self._before_overwriting())

    def _before_overwriting(self) -> None:
        if self._taken is not None:
            torch.cuda.current_stream().wait_event(self._taken)

    def _reserve(self, nbytes: int) -> None:
        if self._memory is not None and self._memory.nbytes >= nbytes:
            return
        cuda: Any = torch.cuda.cudart()
        if self._memory is not None:
            _check(cuda.cudaHostUnregister(self._memory.data_ptr()), self._memory.nbytes)
        self._stream = self._stream or torch.cuda.Stream()
        # Registered, as torch.distributed's state dicts: pin_memory=True would round up to a power of two.
        self._memory = torch.empty(max(nbytes, _ALIGNMENT), dtype=torch.uint8)
        _check(cuda.cudaHostRegister(self._memory.data_ptr(), self._memory.nbytes, 0), nbytes)


def storage_of_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with a storage that ends where it ends; a CPU's contiguous view is not copied."""
    tensor = tensor.detach()
    if not tensor.is_cpu or tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    if not tensor.is_contiguous() or not tensor.numel():
        return tensor.clone(memory_format=torch.contiguous_format)
    memory = tensor.view(-1).view(torch.uint8).numpy()
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _check(result: Any, nbytes: int) -> None:
    if int(result) != 0:
        raise UserError(
            f"{nbytes / 2**30:.1f} GiB of the host's memory cannot be pinned for --async-save (CUDA error "
            f"{int(result)}): train without it, or on a host with more memory"
        )
