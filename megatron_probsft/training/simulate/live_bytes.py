"""The bytes of all tensors that are alive, by kind, and when they were most: of real or of fake tensors."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class _Storage:
    kind: str
    bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts, while it is entered, the storages that torch's operations make, until they are freed.

    A storage counts once, however many tensors look into it, with all its bytes, under the kind that is in
    use when it is made. What an operation allocates and frees within itself is not seen, nor what was made
    before (but see `adopt`). Backward passes count where autograd runs them on this thread
    (`torch.autograd.set_multithreading_enabled(False)`), as it does on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        """The bytes alive, by kind."""
        self.at_peak: Counter[str] = Counter()
        """The bytes alive when their sum was largest, by kind."""
        self.total = self._peak = 0
        self._kind = "activations"
        self._storages: dict[int, _Storage] = {}

    def use_kind(self, name: str) -> None:
        """Count what is made from now on under this name."""
        self._kind = name

    def adopt(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count the storages of these tensors under this kind from now on."""
        for tensor in tensors:
            self._add(tensor)
            storage = self._storages[_key(tensor)]
            self.now[storage.kind] -= storage.bytes
            self.now[kind] += storage.bytes
            storage.kind = kind

    def kind_of(self, tensor: torch.Tensor) -> str | None:
        """Return what the tensor's storage counts under, or None if it is not counted."""
        if tensor.layout != torch.strided:
            return None
        storage = self._storages.get(_key(tensor))
        return None if storage is None else storage.kind

    def forget_peak(self) -> None:
        """Look for the peak from now on, in a new `at_peak`."""
        self.at_peak = Counter()
        self._note_peak()

    def _note_peak(self) -> None:
        self._peak = self.total
        self.at_peak.clear()
        self.at_peak.update(self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self._add(leaf)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = _Storage(self._kind, size)
        self.now[self._kind] += size
        self.total += size
        weakref.finalize(storage, self._free, key)
        if self.total > self._peak:
            self._note_peak()

    def _free(self, key: int) -> None:
        storage = self._storages.pop(key)
        self.now[storage.kind] -= storage.bytes
        self.total -= storage.bytes


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
