"""The layout of a model over processes, and the problems that a layout has with a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from megatron_probsft.models.family import Experts


@dataclass(frozen=True)
class Parallelism:
    """The layout of a run, under Megatron's names."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    decoder_first_pipeline_num_layers: int | None = None
    decoder_last_pipeline_num_layers: int | None = None
    num_virtual_stages_per_pipeline_rank: int | None = None
    expert_model_parallel_size: int = 1

    def data_parallel_size(self, world_size: int) -> int:
        """Return how many groups of so many processes see different samples."""
        return world_size // (
            self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size
        )


class Sizes(Protocol):
    """The sizes of a model that decide how it divides; `ModelShape` has them."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_query_groups(self) -> int: ...
    @property
    def ffn_hidden_size(self) -> int: ...
    @property
    def experts(self) -> Experts | None: ...


def parallelism_problems(shape: Sizes, layout: Parallelism, world_size: int) -> Iterator[str]:
    """A line for each thing that Megatron-Core would refuse late or unclearly, with what would be right.

    Sizes below 1, which the settings' own check refuses, are passed over.
    """
    tp, pp, cp = (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.context_parallel_size,
    )
    if min(tp, pp, cp, layout.expert_model_parallel_size) < 1:
        return
    if world_size % (tp * pp * cp):
        yield (
            f"{world_size} processes do not divide into tensor × pipeline × context parallel groups of "
            f"{tp} × {pp} × {cp}: start a multiple of {tp * pp * cp} with torchrun --nproc-per-node"
        )
    for name, size in (
        ("attention heads", shape.num_attention_heads),
        ("key/value heads", shape.num_query_groups),
        ("MLP columns", shape.ffn_hidden_size),
    ):
        if size % tp:
            fits = [n for n in range(1, shape.num_query_groups + 1) if not _tp_problem(shape, n)]
            yield (
                f"the model's {size} {name} do not divide by --tensor-model-parallel-size {tp}; "
                f"possible: {', '.join(map(str, fits))}"
            )
            break
    yield from _stage_problems(shape.num_layers, layout)
    yield from _expert_problems(shape, layout, world_size)
    if layout.sequence_parallel and tp == 1:
        yield "--sequence-parallel needs --tensor-model-parallel-size of 2 or more"


def _expert_problems(shape: Sizes, layout: Parallelism, world_size: int) -> Iterator[str]:
    ep, tp = layout.expert_model_parallel_size, layout.tensor_model_parallel_size
    count = shape.experts.count if shape.experts else 1
    if count % ep:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        yield (
            f"the model's {count} expert(s) do not divide by --expert-model-parallel-size {ep}; possible: "
            f"{', '.join(map(str, fits))}"
        )
    if ep > 1 and world_size // layout.pipeline_model_parallel_size % (tp * ep):
        yield (
            f"the {world_size // layout.pipeline_model_parallel_size} processes of a pipeline stage do not "
            f"divide into tensor × expert parallel groups of {tp} × {ep}"
        )
    if shape.experts and tp > 1 and not layout.sequence_parallel:
        yield "mixture-of-experts models need --sequence-parallel with tensor parallelism"


def _stage_problems(layers: int, layout: Parallelism) -> Iterator[str]:
    pp = layout.pipeline_model_parallel_size
    first, last = layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers
    given = [count for count in (first, last) if count is not None]
    if not given and layers % pp:
        fits = [n for n in range(1, layers + 1) if layers % n == 0]
        yield (
            f"the model's {layers} layers do not divide by --pipeline-model-parallel-size {pp}; "
            f"possible: {', '.join(map(str, fits))}; or say how many the first or the last stage takes: "
            "--decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers"
        )
        return
    stages, rest = pp - len(given), layers - sum(given)
    if given and (pp < 2 or min(given) < 1 or rest < stages or (rest % stages if stages else rest)):
        yield (
            f"{layers} layers with {first if first is not None else 'as many'} on the first and "
            f"{last if last is not None else 'as many'} on the last of {pp} pipeline stages leave {rest} for "
            f"the other {stages}: they must divide evenly, at least one each"
        )
        return
    virtual = layout.num_virtual_stages_per_pipeline_rank
    if virtual is None:
        return
    flag = f"--num-virtual-stages-per-pipeline-rank {virtual}"
    if pp < 2 or virtual < 2:
        yield f"{flag} must be 2 or more, and needs --pipeline-model-parallel-size of 2 or more"
        return
    for count in {*given, *([rest // stages] if stages else [])}:
        if count % virtual:
            yield f"{flag} does not divide the {count} layers of a pipeline stage"


def _tp_problem(shape: Sizes, tp: int) -> bool:
    return any(
        size % tp for size in (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size)
    )
