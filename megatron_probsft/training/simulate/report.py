"""The records that a simulated step leaves: memory, floating-point operations and collectives by stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryByKind:
    """The bytes on one rank.

    The first three are there during the whole run. The next three are there when the sum of all is highest
    in a step (`peak`). The last two are on the host, while a checkpoint is written or read.
    """

    weights: int
    gradients: int
    optimizer: int
    """The moments and the float32 main weights, of this rank's part under the distributed optimizer."""
    activations: int
    """All tensors of the step but for the next two kinds."""
    head: int
    """Selected rows, logits and their statistics."""
    communication: int
    """Tensors that a collective filled: gathered sequences, what a neighbouring stage sent."""
    save_host: int
    resume_host: int

    @property
    def static(self) -> int:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        return self.static + self.activations + self.head + self.communication


@dataclass(frozen=True)
class Flops:
    """The floating-point operations of one rank in one whole step, forward and backward, as computed.

    2 per multiply and add; what is recomputed counts again; causal attention counts the half that is
    computed. Elementwise operations are left out.
    """

    linear: int
    """Products with the weights of the layers, the router's and the experts' too."""
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head


@dataclass(frozen=True)
class Collective:
    """One kind of call that one rank makes in one whole step, summed over the step."""

    group: str
    """TP, CP, PP (send and receive), DP (the ranks that reduce dense gradients, CP included), EP,
    expert DP, model (gradient norms), world."""
    group_size: int
    operation: str
    """all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send, receive."""
    bytes: int
    """The whole tensor's: an all-gather's output, a reduce-scatter's input, else what this rank gives."""
    calls: int


@dataclass(frozen=True)
class SimulatedStage:
    """One rank of one pipeline stage in one step; the stage's other ranks are like it."""

    stage: int
    rank: int
    """The global rank that was simulated."""
    ranks: int
    """So many ranks hold this stage, over TP, CP and DP."""
    layers: int
    parameters: int
    """Of this rank, as numbers: its own shard, the vocabulary's padding included."""
    memory: MemoryByKind
    flops: Flops
    collectives: tuple[Collective, ...]


@dataclass(frozen=True)
class SimulatedStep:
    """One optimizer step of a run on `world_size` ranks, in the order of its pipeline stages."""

    world_size: int
    data_parallel_size: int
    """The ranks that see different samples: world ÷ (TP × PP × CP)."""
    micro_batches: int
    """Of one rank in one step."""
    pack_length: int
    """The positions of each micro-batch, before context parallelism divides them."""
    sequence_lengths: tuple[int, ...]
    """The lengths of the sequences in each micro-batch that was simulated."""
    supervised_tokens: int
    """Of one micro-batch."""
    real_tokens_share: float
    """Real tokens ÷ computed tokens: 1 where no data were given."""
    bf16: bool
    stages: tuple[SimulatedStage, ...]
    assumptions: tuple[str, ...]
    """Sentences for the reader of any figure made from this."""

    def as_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return dataclasses.asdict(self)


def step_from_json(record: dict[str, Any]) -> SimulatedStep:
    """Return the step that `as_json` gave."""
    lists = ("sequence_lengths", "assumptions")
    stages = tuple(stage_from_json(stage) for stage in record["stages"])
    return SimulatedStep(**{**record, "stages": stages, **{name: tuple(record[name]) for name in lists}})


def stage_from_json(record: dict[str, Any]) -> SimulatedStage:
    """Return the stage of a step that `as_json` gave."""
    parts = {
        "memory": MemoryByKind(**record["memory"]),
        "flops": Flops(**record["flops"]),
        "collectives": tuple(Collective(**each) for each in record["collectives"]),
    }
    return SimulatedStage(**{**record, **parts})
