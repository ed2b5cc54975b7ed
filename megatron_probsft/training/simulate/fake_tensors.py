"""A process in which tensors have shapes but no contents, and collectives nobody on the other side.

What: torch's FakeTensorMode and its "fake" process group, and what both lack to run a step of
    Megatron-Core: values for the few numbers that the host reads, gathered objects, `Module.to`.
Why: FakeTensor raises at every read of a value that it does not know; its parameters cannot be swapped, which
    `Module.to` does with tensor subclasses; objects are gathered through tensors' bytes.
Upstream: torch, _subclasses/fake_tensor.py (`CONSTANT_NUMEL_LIMIT`, `constant`), nn/modules/module.py
    (`Module._apply`), distributed/distributed_c10d.py (`all_gather_object`); Megatron-Core,
    optimizer/__init__.py:364.
Versions: torch from 2.11 on, Megatron-Core 0.19.2.

It changes torch for the whole process: only a process that does nothing else enters it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch._subclasses.fake_tensor as fake_tensor
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from megatron_probsft.runtime.megatron_patches import replace

# What a read gives of a value that is not known: every sum and norm is finite, and not zero.
_READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda tensor: 1.0 if tensor.is_floating_point() else 1,
    "numpy": lambda tensor: np.ones(tuple(tensor.shape)),
    "tolist": lambda tensor: [1.0 if tensor.is_floating_point() else 1] * tensor.numel(),
    "__bool__": lambda tensor: True,
    "__float__": lambda tensor: 1.0,
    "__int__": lambda tensor: 1,
}
_KNOWN_VALUES = 2**24
"""Tensors of up to so many elements keep values that are known: those of a batch."""


def join_fake_world(rank: int, world_size: int) -> None:
    """Let this process be that rank of a world in which it is alone; collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


@contextlib.contextmanager
def faking() -> Iterator[FakeTensorMode]:
    """Make fake tensors inside. What `known` made keeps its values, and what is computed from it too."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    _patch()
    with (
        _Faking(allow_non_fake_inputs=True) as mode,
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield mode


class _Faking(FakeTensorMode):
    """Knows also the values of ranges, and what ranks that are alike gather from each other."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out: Any = super().dispatch(func, types, args, kwargs)
        packet = func.overloadpacket
        if packet is torch.ops.aten.arange:
            with unset_fake_temporarily():
                _note(out, func(*args, **(kwargs or {})))
        elif packet is torch.ops.c10d._allgather_base_ and args[1].constant is not None:
            with unset_fake_temporarily():
                one = args[1].constant.flatten()
                _note(args[0], one.repeat(args[0].numel() // one.numel()).view(args[0].shape))
        return out


def _note(fake: FakeTensor, value: torch.Tensor) -> None:
    if value.numel() <= _KNOWN_VALUES:
        fake.constant = value


def known(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """Return the fake tensor that knows the values of this real one."""
    fake = mode.from_tensor(tensor)
    fake.constant = tensor
    return fake


def _patch() -> None:
    fake_tensor.CONSTANT_NUMEL_LIMIT = _KNOWN_VALUES
    for name, unknown in _READS.items():
        setattr(FakeTensor, name, _read(getattr(torch.Tensor, name), unknown))
    replace(torch.nn.Module, "to", lambda self, *args, **kwargs: self)
    for module in (torch.distributed, dist):
        replace(module, "all_gather_object", _gather_alike)


def _read(real: Callable, unknown: Callable[[torch.Tensor], Any]) -> Callable:
    def read(self: FakeTensor) -> Any:
        if self.constant is None:
            return unknown(self)
        with _disable_current_modes():  # which would make a fake one of what `numpy` detaches
            return real(self.constant)

    return read


def _gather_alike(found: list[Any], one: Any, group: Any = None) -> None:
    found[:] = [one] * len(found)
