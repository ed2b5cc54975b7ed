"""A step's floating-point operations and collectives by formula: in microseconds, for a search over layouts.

The simulated step counts the same on the run's own code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megatron_probsft.models.build import padded_vocab_size
from megatron_probsft.models.family import Family, ModelShape
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.report import (
    Collective,
    Flops,
    MemoryByKind,
    SimulatedStage,
    SimulatedStep,
)
from megatron_probsft.training.start.memory_estimate import (
    StageMemory,
    recomputed_modules,
    stage_layers,
    stage_memory,
)
from megatron_probsft.training.throughput.workload import Workload

_ATTENTION_BACKWARD = 2.5  # of the forward pass: flash attention computes the scores again


@dataclass(frozen=True)
class _Rank:
    """The numbers that the counts of one rank are made of."""

    config: TrainConfig
    shape: ModelShape
    workload: Workload

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch on this rank."""
        return self.workload.pack_length // self.config.layout.context_parallel_size

    @property
    def element(self) -> int:
        return 2 if self.config.precision.bf16 else 4

    @property
    def hidden_bytes(self) -> int:
        """The bytes of a micro-batch's hidden states, of all tensor-parallel ranks' tokens."""
        return self.tokens * self.shape.hidden_size * self.element


def counted_step(config: TrainConfig, family: Family, shape: ModelShape, workload: Workload) -> SimulatedStep:
    """Return what one step computes, sends and keeps, by stage."""
    layout, dp = config.layout, workload.data_parallel_size
    tp, cp, pp = (
        layout.tensor_model_parallel_size, layout.context_parallel_size, layout.pipeline_model_parallel_size
    )  # fmt: skip
    rank = _Rank(config, shape, workload)
    memory = stage_memory(config, family, shape, dp, workload.micro_batches, workload.pack_length)
    stages = tuple(
        SimulatedStage(
            stage=number,
            rank=number * tp * cp * dp,
            ranks=tp * cp * dp,
            layers=layers,
            parameters=memory[number].parameters,
            memory=_memory(memory[number]),
            flops=_flops(rank, layers, is_last=number == pp - 1),
            collectives=tuple(_collectives(rank, memory[number], layers)),
        )
        for number, layers in enumerate(stage_layers(layout, shape.num_layers))
    )
    return SimulatedStep(
        world_size=tp * cp * pp * dp,
        data_parallel_size=dp,
        micro_batches=workload.micro_batches,
        pack_length=workload.pack_length,
        sequence_lengths=workload.sequences,
        supervised_tokens=_supervised(rank),
        real_tokens_share=workload.real_share,
        bf16=bool(config.precision.bf16),
        stages=stages,
        assumptions=(),
    )


def _supervised(rank: _Rank) -> int:
    """Return the supervised tokens of a micro-batch, over the context-parallel ranks that share it."""
    work = rank.workload
    return round(work.real_tokens * work.supervised_share / work.data_parallel_size / work.micro_batches)


class _Again(NamedTuple):
    """The times that parts of layers are computed again in the backward pass, on average over the layers."""

    projections: float
    attention: float
    mlp: float


def _again(config: TrainConfig, shape: ModelShape, layers: int) -> _Again:
    layout = config.layout
    if layout.recompute_granularity == "selective":
        modules = recomputed_modules(layout)
        mlp = ("moe" if shape.experts else "mlp") in modules
        return _Again(0.0, float("core_attn" in modules), float(mlp))
    share = 0.0
    if layout.recompute_granularity is not None:
        assert layout.recompute_num_layers is not None
        chunks = layout.num_virtual_stages_per_pipeline_rank or 1
        share = min(layout.recompute_num_layers * chunks / layers, 1.0)
        if layout.recompute_method == "uniform":
            share = 1.0
    return _Again(share, share, share)


def _flops(rank: _Rank, layers: int, *, is_last: bool) -> Flops:
    shape, layout, work = rank.shape, rank.config.layout, rank.workload
    tp, cp = layout.tensor_model_parallel_size, layout.context_parallel_size
    mlp = 3 * shape.ffn_hidden_size
    if shape.experts:
        mlp = shape.experts.per_token * 3 * shape.experts.ffn_hidden_size + shape.experts.count
    again = _again(rank.config, shape, layers)
    projections = 2 * shape.query_size + 2 * shape.key_size
    widths = projections * (3 + again.projections) + mlp * (3 + again.mlp)
    linear = 2 * rank.tokens * shape.hidden_size * widths / tp
    attention = 2 * shape.query_size * work.squares / (tp * cp)
    columns = padded_vocab_size(shape, tp, layout.make_vocab_size_divisible_by) / tp
    head = 2 * _supervised(rank) / cp * shape.hidden_size * columns
    return Flops(
        linear=int(work.micro_batches * layers * linear),
        attention=int(work.micro_batches * layers * attention * (1 + _ATTENTION_BACKWARD + again.attention)),
        head=int(work.micro_batches * head * 3) if is_last else 0,
    )


def _collectives(rank: _Rank, memory: StageMemory, layers: int) -> Iterator[Collective]:
    layout = rank.config.layout
    again = _again(rank.config, rank.shape, layers)
    if layout.tensor_model_parallel_size > 1:
        yield from _tensor_parallel(rank, memory, layers, again)
    if layout.context_parallel_size > 1:
        # The keys and values of the whole pack, and in the backward pass their gradients.
        keys = 2 * rank.shape.key_size // layout.tensor_model_parallel_size
        size = rank.workload.pack_length * keys * rank.element
        calls = rank.workload.micro_batches * layers
        yield _times("CP", layout.context_parallel_size, "all_gather", size, calls * (1 + again.attention))
        yield _times("CP", layout.context_parallel_size, "reduce_scatter", size, calls)
    if rank.shape.experts and layout.expert_model_parallel_size > 1:
        tokens = rank.tokens // layout.tensor_model_parallel_size * rank.shape.experts.per_token
        size = tokens * rank.shape.hidden_size * rank.element
        calls = rank.workload.micro_batches * layers * (4 + 2 * again.mlp)
        yield _times("EP", layout.expert_model_parallel_size, "all_to_all", size, calls)
    yield from _between_stages(rank, memory.stage)
    yield from _data_parallel(rank, memory, layers)


def _tensor_parallel(rank: _Rank, memory: StageMemory, layers: int, again: _Again) -> Iterator[Collective]:
    """Yield those of Megatron's column and row parallel layers, the embedding and the head.

    With sequence parallelism: before each column-parallel layer a gather, of its gradient a scatter, the
    input gathered again for the weight's gradient; the row-parallel ones the other way round.
    """
    layout, size = rank.config.layout, rank.hidden_bytes
    tp, calls = layout.tensor_model_parallel_size, rank.workload.micro_batches
    copies = rank.shape.experts.per_token if rank.shape.experts else 1  # of a token, one for each expert
    pairs = layers * (1.0 + copies)
    more = layers * (again.projections + copies * again.mlp)
    ends = (memory.stage == 0) + (memory.stage == layout.pipeline_model_parallel_size - 1)
    if layout.sequence_parallel:
        yield _times("TP", tp, "all_gather", size, calls * (pairs * 3 + more + ends))
        yield _times("TP", tp, "reduce_scatter", size, calls * (pairs * 2 + more + ends))
    else:
        yield _times("TP", tp, "all_reduce", size, calls * (pairs * 2 + more + ends))


def _between_stages(rank: _Rank, stage: int) -> Iterator[Collective]:
    layout = rank.config.layout
    pp, chunks = layout.pipeline_model_parallel_size, layout.num_virtual_stages_per_pipeline_rank or 1
    if pp == 1:
        return
    size = rank.hidden_bytes
    if layout.sequence_parallel:
        size //= layout.tensor_model_parallel_size
    for operation in ("send", "receive"):
        # Activations go on after every chunk but the last, gradients back before every chunk but the first.
        calls = 2 * chunks - (stage == 0) - (stage == pp - 1)
        yield _times("PP", 2, operation, size, rank.workload.micro_batches * calls)
    if rank.shape.tied_embeddings and stage in (0, pp - 1):  # the gradients of its two copies
        tp = layout.tensor_model_parallel_size
        rows = padded_vocab_size(rank.shape, tp, layout.make_vocab_size_divisible_by)
        yield Collective("embedding", 2, "all_reduce", rows * rank.shape.hidden_size // tp * 4, 1)


def _data_parallel(rank: _Rank, memory: StageMemory, layers: int) -> Iterator[Collective]:
    layout = rank.config.layout
    replicas = rank.workload.data_parallel_size * layout.context_parallel_size
    experts = _expert_parameters(rank, layers)
    for group, size, parameters in (
        ("DP", replicas, memory.parameters - experts),
        ("expert DP", replicas // layout.expert_model_parallel_size, experts),
    ):
        if size == 1 or not parameters:
            continue
        usual = max(40_000_000, 1_000_000 * size)  # Megatron-Core's
        buckets = -(-parameters // (layout.ddp_bucket_size or usual))
        if layout.use_distributed_optimizer:
            yield Collective(group, size, "reduce_scatter", parameters * 4, buckets)
            yield Collective(group, size, "all_gather", parameters * rank.element, buckets)
        else:
            yield Collective(group, size, "all_reduce", parameters * 4, buckets)


def _expert_parameters(rank: _Rank, layers: int) -> int:
    experts, layout = rank.shape.experts, rank.config.layout
    if experts is None:
        return 0
    one = 3 * rank.shape.hidden_size * experts.ffn_hidden_size // layout.tensor_model_parallel_size
    return layers * one * experts.count // layout.expert_model_parallel_size


def _times(group: str, size: int, operation: str, one: int, calls: float) -> Collective:
    return Collective(group, size, operation, int(one * calls), round(calls))


def _memory(stage: StageMemory) -> MemoryByKind:
    return MemoryByKind(
        weights=stage.weights,
        gradients=stage.gradients,
        optimizer=stage.optimizer,
        activations=stage.activations,
        head=stage.head,
        communication=0,
        save_host=0,  # the host's memory is the simulation's to count: no layout is chosen by it
        resume_host=0,
    )
