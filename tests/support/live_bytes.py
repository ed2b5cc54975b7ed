"""The memory of live tensors while code runs, and the most memory a process had."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that operators return inside, by this thread, while they live."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        """known: tensors whose memory was there before."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        storages = [tensor.untyped_storage() for tensor in known]
        self._known = [range(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in storages]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._seen or storage.device.type == "meta":
            return
        if any(storage.data_ptr() in memory for memory in self._known):  # another name for it
            return
        self._seen.add(key)
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, nbytes)

    def _drop(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


class ResidentBytes:
    """The most memory of this process since the object was made, beyond what it had then (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = _status("VmRSS")

    @property
    def peak(self) -> int:
        return _status("VmHWM") - self._before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])
