"""The memory of every pipeline stage follows from a few and from the micro-batches that each holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.report import MemoryByKind, SimulatedStage, stage_from_json
from megatron_probsft.training.start.memory_estimate import chunks_in_flight

_DIRECT = 3
"""Up to so many stages each is simulated with as many micro-batches as it ever holds."""


@dataclass(frozen=True)
class Passes:
    """The forward and backward passes of a step, on one rank."""

    held: int
    """The micro-batches whose activations it holds at most, each once per chunk."""
    bytes: Mapping[str, int]
    """What is alive at their peak, by kind."""
    micro_batches: int
    left: int
    """The bytes alive after the last one's: of the run, and what micro-batches leave until the step's end."""


@dataclass(frozen=True)
class SimulatedRank:
    """The outcome for one rank of one step."""

    stage: SimulatedStage
    """Its memory is that of the last passes alone."""
    passes: Sequence[Passes]
    """Those of the steps that `micro_batches_to_simulate` names."""
    update: Mapping[str, int]
    """The bytes alive at the peak of what follows the passes, by kind."""
    micro_batches: int
    pack_length: int
    sequence_lengths: Sequence[int]
    """These are the first micro-batch's."""
    supervised_tokens: int
    """Those of the first micro-batch."""
    real_tokens_share: float


def rank_from_json(record: dict[str, Any]) -> SimulatedRank:
    """Return the rank that `dataclasses.asdict` was given."""
    passes = [Passes(**one) for one in record["passes"]]
    return SimulatedRank(**{**record, "stage": stage_from_json(record["stage"]), "passes": passes})


def stages_to_simulate(layout: LayoutSettings) -> list[int]:
    """Return the stages of which one rank is simulated: the first, the last and two between them.

    Those between have the same layers, and send and receive the same; only the number of micro-batches that
    they hold falls from one to the next. Two and three of them are soon held.
    """
    count = layout.pipeline_model_parallel_size
    other = 1 if layout.num_virtual_stages_per_pipeline_rank else count - 3
    return sorted({0, other, count - 2, count - 1} & {*range(count)})


def micro_batches_to_simulate(layout: LayoutSettings, micro_batches: int) -> list[int]:
    """Return of how many micro-batches the steps are that tell all of a step of `micro_batches`.

    A plain pipeline (1F1B) does nothing new once all stages hold as many micro-batches as they ever do and
    the last stage has its first one back; of many stages, those that are simulated after four. The
    interleaved one goes through a pipeline's length of micro-batches at a time, and holds at most
    (chunks + 1) × stages − 1 chunks (arXiv 2104.04473). A shorter step before tells what each micro-batch
    adds, and what it leaves behind.
    """
    stages, few = layout.pipeline_model_parallel_size, 1
    if layout.num_virtual_stages_per_pipeline_rank is not None:
        few, enough = stages, 2 * stages
    elif stages > _DIRECT:
        few, enough = 2, 4
    else:
        enough = stages + 1
    return sorted({min(few, micro_batches), min(enough, micro_batches)})


def all_stages(
    ranks: Sequence[SimulatedRank], layout: LayoutSettings, micro_batches: int
) -> tuple[SimulatedStage, ...]:
    """Return every stage of the pipeline, of the ranks of those that `stages_to_simulate` names."""
    known = {rank.stage.stage: rank for rank in ranks}
    count = layout.pipeline_model_parallel_size
    found = []
    for stage in range(count):
        alike = known.get(stage) or next(known[one] for one in sorted(known) if one)
        passes = alike.passes
        if stage not in known:
            passes = [known[count - 2].passes[-1], passes[-1]]
        held = chunks_in_flight(layout, stage, micro_batches)
        at_peak = _while_held(passes, held, _left(alike.passes))
        at_peak["activations"] += _left(alike.passes) * micro_batches
        rank = alike.stage.rank + (stage - alike.stage.stage) * alike.stage.ranks
        memory = _larger(at_peak, alike.update, alike.stage.memory)
        found.append(dataclasses.replace(alike.stage, stage=stage, rank=rank, memory=memory))
    return tuple(found)


def _left(passes: Sequence[Passes]) -> int:
    """Return the bytes that each micro-batch leaves behind."""
    few, many = passes[0], passes[-1]
    return (many.left - few.left) // max(many.micro_batches - few.micro_batches, 1)


def _while_held(passes: Sequence[Passes], held: int, left: int) -> Counter[str]:
    """Return the bytes by kind where so many micro-batches are held, each adding the same.

    What earlier ones left is not among them.
    """
    few, many = (Counter(one.bytes) for one in (passes[0], passes[-1]))
    for kinds, one in ((few, passes[0]), (many, passes[-1])):
        kinds["activations"] -= left * one.micro_batches
    steps = passes[-1].held - passes[0].held
    if steps > 0:
        for kind in {*few, *many}:
            many[kind] += (held - passes[-1].held) * (many[kind] - few[kind]) // steps
    return many


def _larger(passes: Mapping[str, int], update: Mapping[str, int], memory: MemoryByKind) -> MemoryByKind:
    """Return the memory at the step's peak, which is in the passes or after them."""
    most = max(passes, update, key=lambda kinds: sum(kinds.values()))
    names = [field.name for field in dataclasses.fields(MemoryByKind)]
    return dataclasses.replace(memory, **{name: most[name] for name in names if name in most})
