"""One rank's step is recorded as torch dispatches it: live bytes, operations, collectives."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from megatron_probsft.training.simulate.live_bytes import LiveBytes

# What torch.distributed dispatches: the name of the operation, and the argument that holds the whole tensor.
_COLLECTIVES = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "alltoall_base_": ("all_to_all", 1),
    "alltoall_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
    "recv_": ("receive", 0),
}
PIPELINE = "pipeline"
"""The key, among the groups' names, of the one that stages send through."""
_FILL = ("all_gather", "all_to_all", "receive")
"""The operations whose first argument is a tensor made for them."""


_recording: list[StepRecorder] = []


def note_flops(kind: str, number: int) -> None:
    """Count operations of linear layers, attention or head that no operation of torch stands for."""
    for recorder in _recording:
        recorder.add_flops(kind, number)


@dataclass(frozen=True)
class Group:
    """A process group by the name that it has in the report."""

    name: str
    size: int


@dataclass(frozen=True)
class CallKind:
    """The calls that are added up."""

    group: Group
    operation: str
    phase: str


class StepRecorder(LiveBytes):
    """Records bytes, floating-point operations and collectives while it is entered.

    `phase` is a word of the caller's that collectives and operations are told apart by. Operations whose
    inputs or outputs are of the kind `head` are the head's. Groups of one rank are left out.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        """Take the report's names of groups by torch's `group_name`, or by PIPELINE."""
        super().__init__()
        self.phase = ""
        self.peaks: dict[str, Counter[str]] = {}
        """The bytes at the peak of each phase, by kind."""
        self.started: dict[str, int] = {}
        """The bytes alive when each phase began."""
        self.flops: Counter[tuple[str, str]] = Counter()
        """By phase and linear, attention or head."""
        self.calls: Counter[CallKind] = Counter()
        self.bytes: Counter[CallKind] = Counter()
        self._groups = groups
        self._works: list[FakeWork] = []

    def restart(self, phase: str) -> None:
        """Forget all operations and peaks, and begin a phase; what is alive stays counted."""
        for records in (self.flops, self.calls, self.bytes, self.peaks, self.started):
            records.clear()
        self.begin(phase)

    def begin(self, phase: str) -> None:
        """Begin another phase, with a peak of its own."""
        self.phase = phase
        self.forget_peak()
        self.peaks[phase] = self.at_peak
        self.started[phase] = self.total

    def add_flops(self, kind: str, number: int) -> None:
        """Count operations; see `note_flops`."""
        self.flops[self.phase, kind] += number

    def __enter__(self) -> Self:
        _recording.append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        _recording.remove(self)
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._communicate(func, args)
            if "coalesced" in str(func) and any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(args)):
                return self._done()  # fake tensors have no rule for these
        out = super().__torch_dispatch__(func, types, args, kwargs)
        formula = _formula(func)
        if formula is not None:
            shapes = [arg for arg in args if not isinstance(arg, torch.dtype)]  # addmm's, of what it returns
            number = int(formula(*shapes, **(kwargs or {}), out_val=out))
            tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
            is_head = any(self.kind_of(tensor) == "head" for tensor in tensors)
            self.add_flops("head" if is_head else "linear", number)
        return out

    def _done(self) -> Any:
        self._works.append(FakeWork())  # the box does not own it
        return self._works[-1].boxed()

    def _communicate(self, func: Any, args: Any) -> None:
        name = func.overloadpacket.__name__
        if name not in _COLLECTIVES:
            return
        operation, position = _COLLECTIVES[name]
        box = next(arg for arg in args if isinstance(arg, torch.ScriptObject))
        # Megatron-Core takes the whole world's group for half of the transfers between two stages.
        name = PIPELINE if operation in ("send", "receive") else ProcessGroup.unbox(box).group_name
        group = self._groups.get(name)
        if group is None or group.size == 1:
            return
        whole = [leaf for leaf in tree_leaves(args[position]) if isinstance(leaf, torch.Tensor)]
        call = CallKind(group, operation, self.phase)
        self.calls[call] += 1
        self.bytes[call] += sum(tensor.numel() * tensor.element_size() for tensor in whole)
        if operation in _FILL:
            for tensor in tree_leaves(args[0]):
                if self.kind_of(tensor) in ("activations", "head"):
                    self.adopt([tensor], "communication")


@functools.cache
def _formula(func: Any) -> Any:
    """Return torch's count of operations, also for those that write into their first argument."""
    packet = func.overloadpacket
    plain = (
        getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None) if func.namespace == "aten" else None
    )
    return flop_registry.get(packet) or flop_registry.get(plain)
