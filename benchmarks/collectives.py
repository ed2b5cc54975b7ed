"""Counts collectives where all of them pass: torch's dispatcher."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CollectiveRecorder(TorchDispatchMode):
    """`calls`: (name, elements this rank sends) of every collective inside the `with`; `bytes`: their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            sent = min(tensors, key=torch.Tensor.numel)
            self.calls.append((func._opname.strip("_"), sent.numel()))
            self.bytes += sent.numel() * sent.element_size()
        return func(*args, **(kwargs or {}))
