"""Seconds of collectives between GPUs of one node and of several, from the links' rates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.report import Collective, SimulatedStage
from megatron_probsft.training.throughput.cards import GpuCard

NODE = 8  # GPUs in a node


@dataclass(frozen=True)
class Assumed:
    """The shares and the seconds that the time model takes for granted, for all cards."""

    attention: float = 0.55
    """Of the bf16 peak, forward and backward together, sequences of a thousand tokens and more."""
    tile: int = 128
    """Attention is computed in squares of this many tokens; CP cuts sequences in parts first."""
    memory: float = 0.75
    """Of the memory's bandwidth, in kernels that only move numbers."""
    link: float = 0.75
    """Of NVLink's bandwidth (or PCIe's), in collectives and between two ranks."""
    network: float = 0.85
    exposed_tp: float = 0.6
    """Of TP communication with sequence parallelism: 6 of 10 calls; Megatron-Core runs the others beside the
    products of the weights' and the inputs' gradients."""
    exposed_tp_overlapped: float = 0.2
    """The same with --tp-comm-overlap."""
    exposed_interleaved: float = 0.2
    """Of what stages send each other under the interleaved schedule, which overlaps it."""
    launch_seconds: float = 1.0e-3
    """Of the host, to launch a layer's kernels forward and backward."""
    step_seconds: float = 5e-3
    """Of the host, per step."""
    hop_in_node: float = 2e-6
    hop_between_nodes: float = 8e-6
    """Seconds from one rank of a ring to the next, beside the bytes."""


@dataclass(frozen=True)
class Links:
    """The links of a run's process groups; ranks are numbered TP, CP, EP, DP, PP, as Megatron-Core does."""

    card: GpuCard
    layout: LayoutSettings
    world_size: int
    assumed: Assumed

    def seconds(self, stage: SimulatedStage, groups: Collection[str]) -> float:
        """Return the seconds of all of a step's collectives in these groups, one after the other."""
        return sum(self.of(each) for each in stage.collectives if each.group in groups)

    def of(self, collective: Collective) -> float:
        """Return the seconds of a kind of call in one step, as rings take them (NCCL's bus bandwidth)."""
        size = collective.group_size
        stride = self._stride(collective.group)
        here = min(max(NODE // stride, 1), size)
        within = self.card.link * self.assumed.link
        rate = within
        if size > here:
            # Each GPU has a network card of its own, and a group uses those of its ranks in a node.
            rate = min(within, here * self.card.network * self.assumed.network)
        if collective.operation in ("send", "receive", "broadcast"):
            rate = within if stride * size <= NODE else self.card.network * self.assumed.network
            return collective.bytes / rate + collective.calls * self._latency(size, here)
        travelled = collective.bytes * (size - 1) / size
        if collective.operation == "all_reduce":
            travelled *= 2
        if collective.operation == "all_to_all" and size > here:
            away = collective.bytes * (1 - here / size)  # each rank sends its own part through its own card
            rate, travelled = self.card.network * self.assumed.network, away
        return travelled / rate + collective.calls * self._latency(size, here)

    def _stride(self, group: str) -> int:
        """Return how far apart neighbours of a group are in the numbering of ranks."""
        layout = self.layout
        tp = layout.tensor_model_parallel_size
        return {
            "TP": 1,
            "CP": tp,
            "EP": tp,
            "DP": tp,  # it includes CP
            "expert DP": tp * layout.expert_model_parallel_size,
            "PP": self.world_size // layout.pipeline_model_parallel_size,
            "embedding": self.world_size // layout.pipeline_model_parallel_size,
        }.get(group, 1)

    def _latency(self, size: int, here: int) -> float:
        nodes = -(-size // here)
        between = nodes if nodes > 1 else 0
        return between * self.assumed.hop_between_nodes + (size - nodes) * self.assumed.hop_in_node
