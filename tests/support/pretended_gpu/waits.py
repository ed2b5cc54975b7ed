"""Notes every place where the host would wait for the device, while work is done on fake tensors."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed._tools.fake_collectives
from torch._C._distributed_c10d import FakeWork  # type: ignore[attr-defined]
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.pretended_gpu.device import on_wait

_ROOT = str(Path(__file__).parents[3]) + "/"
_HERE = tuple(str(Path(__file__).with_name(name)) for name in ("waits.py", "device.py"))
# Their results' shapes depend on data: the host asks how many there are.
_DATA_DEPENDENT = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
ROWS = 256
"""The sum of several integers on the device, and the number of elements that a mask selects: nobody knows."""


def _value(tensor: torch.Tensor) -> float:
    if tensor.is_floating_point():
        return 1.0
    return 0 if tensor.numel() == 1 else ROWS // tensor.numel()


def _list(tensor: torch.Tensor) -> Any:
    values: Any = _value(tensor)
    for size in reversed(tensor.shape):
        values = [values] * size
    return values


_READS: dict[str, Any] = {
    "item": _value,
    "tolist": _list,
    "numpy": lambda tensor: np.array(_list(tensor)),
    "__bool__": lambda tensor: True,
    "__int__": lambda tensor: int(_value(tensor)),
    "__float__": lambda tensor: float(_value(tensor)),
    "__index__": lambda tensor: int(_value(tensor)),
}


class Waits(TorchDispatchMode):
    """Counts them by what is asked and where: "read megatron/core/optimizer/clip_grads.py:clip_grad".

    read: a value of a CUDA tensor is looked at. shape: a shape depends on values. copy: memory goes between
    host and device, and the call returns once that is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self._works: list[Any] = []
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d" and "coalesced_" in func.__name__:  # torch's fake collectives lack these
            self._works.append(FakeWork())
            return self._works[-1].boxed()
        if self._is_waiting_copy(func, args, kwargs):
            self.note("copy")
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and _is_by_mask(*args)
        if name in _DATA_DEPENDENT or by_mask:
            self.note("shape")
        if name == "masked_select" or (name == "index" and by_mask):
            return args[0].new_empty(ROWS)
        return func(*args, **kwargs)

    def _is_waiting_copy(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0].device, kwargs.get("device") or args[0].device
            waits = not kwargs.get("non_blocking")
        elif func is torch.ops.aten.copy_.default:
            target, source = args[0].device, args[1].device
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            return False
        return waits and source.type != target.type

    def note(self, kind: str) -> None:
        self.found[f"{kind} {_site()}"] += 1


def _is_by_mask(_: Any, indices: Any, value: Any = None, *rest: Any) -> bool:
    """Whether the mask's places are looked for; a number is filled in without (torch's masked_fill)."""
    masked = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in tree_leaves(indices))
    number = isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type == "cpu"
    return masked and not number


def _site() -> str:
    """The innermost function that is neither torch's nor of this folder."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/site-packages/torch/" not in file and not file.startswith((*_HERE, "<")):
            inside = file.rpartition("/site-packages/")[2].removeprefix(_ROOT)
            return f"{inside}:{frame.f_code.co_name}"
        frame = frame.f_back
    return threading.current_thread().name


@contextmanager
def noted() -> Iterator[Waits]:
    """Note what happens within, of fake tensors of a `FakeTensorMode` that is on."""
    waits = Waits()
    originals = {name: getattr(FakeTensor, name) for name in _READS}

    def reading(name: str) -> Any:
        def read(tensor: FakeTensor, *_: Any) -> Any:
            if tensor.device.type == "cuda":
                waits.note("read")
            elif name == "item" and tensor.constant is not None:
                return tensor.constant.item()
            return _READS[name](tensor)

        return read

    for name in _READS:
        setattr(FakeTensor, name, reading(name))
    on_wait.append(lambda: waits.note("wait"))
    try:
        with waits:
            yield waits
    finally:
        on_wait.clear()
        for name, original in originals.items():
            setattr(FakeTensor, name, original)
