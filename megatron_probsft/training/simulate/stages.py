"""The pipeline stages that differ: few are simulated, the others follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.report import MemoryByKind, SimulatedStage
from megatron_probsft.training.start.memory_estimate import chunks_in_flight


def stages_to_simulate(count: int) -> list[int]:
    """Return the first two and the last two stages.

    The stages between the first and the last have the same layers, and send and receive the same; only the
    number of micro-batches that they hold falls from one to the next.
    """
    return sorted({0, 1, count - 2, count - 1} & {*range(count)})


def all_stages(
    simulated: Sequence[SimulatedStage], layout: LayoutSettings, micro_batches: int
) -> tuple[SimulatedStage, ...]:
    """Return every stage of the pipeline, of those that `stages_to_simulate` names.

    Between the second and the last but one, what is not there during the whole run grows by the same bytes
    with each micro-batch that a stage holds.
    """
    known = {stage.stage: stage for stage in simulated}
    pp = layout.pipeline_model_parallel_size
    if pp == len(known):
        return tuple(simulated)
    first, last = known[1], known[pp - 2]
    return tuple(
        known[stage] if stage in known else _between(first, last, stage, layout, micro_batches)
        for stage in range(pp)
    )


def _between(
    first: SimulatedStage, last: SimulatedStage, stage: int, layout: LayoutSettings, micro_batches: int
) -> SimulatedStage:
    most, least, here = (
        chunks_in_flight(layout, one, micro_batches) for one in (first.stage, last.stage, stage)
    )

    def between(name: str) -> int:
        low, high = getattr(last.memory, name), getattr(first.memory, name)
        return low if most == least else low + (high - low) * (here - least) // (most - least)

    memory = MemoryByKind(**{field.name: between(field.name) for field in dataclasses.fields(MemoryByKind)})
    rank = first.rank + (stage - first.stage) * first.ranks
    return dataclasses.replace(first, stage=stage, rank=rank, memory=memory)
