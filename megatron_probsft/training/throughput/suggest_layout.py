"""Layouts that fit a card's memory, best first: all that divide the model are counted, timed and sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_probsft.models.family import Family, ModelShape
from megatron_probsft.models.layout import parallelism_problems
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.step_samples import StepSamples
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.start.memory_estimate import stage_layers, stage_memory
from megatron_probsft.training.throughput.links import NODE
from megatron_probsft.training.throughput.step_counts import counted_step
from megatron_probsft.training.throughput.time_model import Machine, StepTime, real_tokens, step_time
from megatron_probsft.training.throughput.workload import Workload, plan_workload, rough_workload

MARGIN = 0.1  # of the card's memory stays free: backward's short-lived tensors, fragmentation
RESERVED_GIB = 2.0  # CUDA's context, NCCL's buffers, libraries
_POWERS = (1, 2, 4, 8)
_LONG = 8192  # positions of a sequence on each rank that are worth sending keys and values between nodes
_ALIKE = 0.97  # closer than the time model is right


@dataclass(frozen=True)
class Suggestion:
    """A layout that fits, and the step that it is estimated to give."""

    config: TrainConfig
    data_parallel_size: int
    micro_batches: int
    pack_length: int
    memory_gib: float
    """Of the fullest stage, by the closed formula, what is reserved included."""
    time: StepTime
    tokens_per_second: float

    @property
    def key(self) -> tuple[int, ...]:
        """The sizes of the groups: layouts that differ in less are variants of one."""
        layout = self.config.layout
        return (
            layout.tensor_model_parallel_size,
            layout.pipeline_model_parallel_size,
            layout.context_parallel_size,
            layout.expert_model_parallel_size,
        )

    @property
    def kinds(self) -> int:
        """The kinds of parallelism, beside data parallelism."""
        return sum(size > 1 for size in self.key)


@dataclass(frozen=True)
class Job:
    """The run that a layout is sought for."""

    config: TrainConfig
    """Without a layout, and without what `by_device` would add."""
    family: Family
    shape: ModelShape
    samples: StepSamples
    said: str
    """Where the samples come from."""
    machine: Machine
    world_size: int

    @property
    def room(self) -> float:
        """The bytes that a rank may fill."""
        return (self.machine.card.memory_gib * (1 - MARGIN) - RESERVED_GIB) * 2**30


def suggest_layouts(job: Job, most: int = 8) -> list[Suggestion]:
    """Return the best variant of each layout that fits, by tokens per second, the best layout first.

    Settings whose default follows from the device are as with GPUs. TP stays within a node, and CP too unless
    sequences are long; TP is with sequence parallelism. As few layers are recomputed as fit. Packs are as
    long as --micro-batch-size 1 to 8 makes them, unless the settings say another number than 1.
    """
    plan = _planner(job)
    found: dict[tuple[int, ...], dict[int, Suggestion]] = {}
    for config in _layouts(job):
        if _static(job, config) > job.room:
            continue
        for micro_batch_size in _micro_batch_sizes(job.config):
            one = _fastest(job, config.replace(micro_batch_size=micro_batch_size), plan)
            if one is None:
                continue
            variants = found.setdefault(one.key, {})
            known = variants.get(micro_batch_size)
            if known is None or one.tokens_per_second > known.tokens_per_second:
                variants[micro_batch_size] = one
    roughly = _sorted([_best(variants.values()) for variants in found.values()])[:most]
    return _sorted([_best([_exact(job, one) for one in found[each.key].values()]) for each in roughly])


def _best(variants: Collection[Suggestion]) -> Suggestion:
    return max(variants, key=lambda each: each.tokens_per_second)


def _exact(job: Job, found: Suggestion) -> Suggestion:
    """Return a layout with the packs that the run itself would make."""
    layout = found.config.layout
    workload = plan_workload(job.samples, found.config.batch, layout, found.data_parallel_size)
    return suggestion_for(job, found.config, workload)


def _sorted(found: Collection[Suggestion]) -> list[Suggestion]:
    """Return them fastest first; those that are within `_ALIKE` of the fastest left, simplest first."""
    left = sorted(found, key=lambda each: -each.tokens_per_second)
    result: list[Suggestion] = []
    while left:
        alike = [each for each in left if each.tokens_per_second >= left[0].tokens_per_second * _ALIKE]
        result += sorted(alike, key=lambda each: (each.kinds, math.prod(each.key), -each.tokens_per_second))
        left = left[len(alike) :]
    return result


def suggestion_for(job: Job, config: TrainConfig, workload: Workload) -> Suggestion:
    """Return what a layout is estimated to need and to give, whether it fits or not."""
    step = counted_step(config, job.family, job.shape, workload)
    time = step_time(step, config, job.shape, job.machine)
    memory = max(stage.memory.peak for stage in step.stages) / 2**30 + RESERVED_GIB
    return Suggestion(
        config, workload.data_parallel_size, step.micro_batches, step.pack_length, memory, time,
        real_tokens(step) / time.total,
    )  # fmt: skip


def _fastest(job: Job, base: TrainConfig, plan: Callable[[TrainConfig], Workload]) -> Suggestion | None:
    """Return the variant that recomputes as little as fits."""
    for recompute in _recomputations(base.layout, job.shape.num_layers):
        config = base.replace(**recompute)
        workload = plan(config)
        stages = stage_memory(
            config, job.family, job.shape, workload.data_parallel_size, workload.micro_batches,
            workload.pack_length,
        )  # fmt: skip
        if max(stage.total for stage in stages) <= job.room:
            return suggestion_for(job, config, workload)
    return None


def _planner(job: Job) -> Callable[[TrainConfig], Workload]:
    """Return a function that tells a layout's packs, once for layouts that pack nearly alike.

    TP and CP only round lengths up, by less than the time model is right.
    """
    known: dict[tuple[Any, ...], Workload] = {}

    def plan(config: TrainConfig) -> Workload:
        layout = config.layout
        dp = layout.data_parallel_size(job.world_size)
        interleaved = layout.num_virtual_stages_per_pipeline_rank is not None
        multiple = layout.pipeline_model_parallel_size if interleaved else 1
        key = (dp, multiple, config.batch.micro_batch_size)
        if key not in known:
            known[key] = rough_workload(job.samples, config.batch, layout, dp)
        return known[key]

    return plan


def _micro_batch_sizes(config: TrainConfig) -> tuple[int, ...]:
    given = config.batch.micro_batch_size
    return _POWERS if given == 1 else (given,)


def _layouts(job: Job) -> Iterator[TrainConfig]:
    """Yield the settings with every layout that divides the model, without recomputation."""
    shape, world = job.shape, job.world_size
    experts = _divisors(shape.experts.count) if shape.experts else [1]
    for tp in (size for size in _POWERS if size <= NODE):
        for cp in _POWERS:
            length = job.config.batch.seq_length
            if world % (tp * cp) or (cp > 1 and length % (2 * cp)):
                continue
            if tp * cp > NODE and length < cp * _LONG:
                continue
            for pp in _divisors(world // (tp * cp)):
                for stages in _stages(shape.num_layers, pp):
                    for ep in experts:
                        config = job.config.replace(
                            tensor_model_parallel_size=tp, sequence_parallel=tp > 1, context_parallel_size=cp,
                            pipeline_model_parallel_size=pp, expert_model_parallel_size=ep, **stages,
                        )  # fmt: skip
                        if not any(parallelism_problems(shape, config.layout, world)):
                            yield by_device(config, None, world, gpu=True)


def _stages(layers: int, pp: int) -> Iterator[dict[str, Any]]:
    """Yield the ways to divide the layers: evenly, in groups that take turns, or fewer on the last stage."""
    if pp > layers:
        return
    if layers % pp == 0:
        yield {}
        if pp > 1:
            for groups in _divisors(layers // pp)[1:]:
                yield {"num_virtual_stages_per_pipeline_rank": groups}
    if pp > 1:  # the last stage has the head
        even = layers // pp
        for last in range(max(even - 4, 1), even):
            if (layers - last) % (pp - 1) == 0:
                yield {"decoder_last_pipeline_num_layers": last}


def _recomputations(layout: LayoutSettings, layers: int) -> Iterator[dict[str, Any]]:
    """Yield what to compute again, from nothing to all layers."""
    yield {}
    chunks = layout.num_virtual_stages_per_pipeline_rank or 1
    most = max(stage_layers(layout, layers)) // chunks
    for count in sorted({-(-most * quarter // 4) for quarter in (1, 2, 3)} - {most}):
        yield {
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": count,
        }
    yield {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _static(job: Job, config: TrainConfig) -> float:
    """Return the bytes of weights, gradients and optimizer on the fullest rank."""
    dp = config.layout.data_parallel_size(job.world_size)
    stages = stage_memory(config, job.family, job.shape, dp, 1, 1)
    return max(stage.weights + stage.gradients + stage.optimizer for stage in stages)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
