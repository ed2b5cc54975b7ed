"""Seconds of a step on a named card, from what it computes, moves and sends. Every figure is an estimate.

A micro-batch's time on a stage is the sum of its products, attention, memory-bound kernels, head and exposed
communication; the stages' times make the pipeline's (1F1B and interleaved: arXiv 2104.04473, section 2.2).
Nothing here was measured by us: the shares of the peaks are `Assumed`, set once so that published
measurements are met best (benchmarks/scaling/published.py and docs/scaling.md have the ratios).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from megatron_probsft.models.build import padded_vocab_size
from megatron_probsft.models.family import ModelShape
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.report import SimulatedStage, SimulatedStep
from megatron_probsft.training.throughput.cards import ESTIMATED_IN_BF16, GpuCard
from megatron_probsft.training.throughput.links import Assumed, Links
from megatron_probsft.vocab_parallel.head_parts import HeadOptions


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step, estimated; the parts add up to the step."""

    linear: float
    """Products of the layers, on the slowest stage, as the next five are."""
    attention: float
    memory_bound: float
    """Norms, rotary embedding, SwiGLU, residuals, casts to FP8, the router's sorting."""
    head: float
    """The head's products and the loss."""
    exposed_layers: float
    """TP, CP and EP communication that no computation hides."""
    launch: float
    """Waiting for the host, where a layer is shorter than launching its kernels."""
    bubble: float
    pipeline_sends: float
    exposed_gradients: float
    """Gradients and weights sent between data-parallel ranks that no computation hides."""
    optimizer: float
    """The gradients' zeroing, scaling, norm and clipping, and the update."""
    host: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Machine:
    """The card, and how the run uses it."""

    card: GpuCard
    fp8: bool = False
    """The layers' products are in FP8; attention and the head stay in bf16."""
    tp_overlap: bool = False
    """--tp-comm-overlap: most of TP's communication runs beside the products."""
    assumed: Assumed = Assumed()


def machine_of(config: TrainConfig, card: GpuCard) -> Machine:
    """Return the card as the settings use it.

    Raises:
        UserError: the run is in float32, as one that a float32 run goes on from.
    """
    if config.precision.bf16 is False:
        raise UserError(ESTIMATED_IN_BF16)
    return Machine(card, config.precision.fp8_format is not None, config.kernels.tp_comm_overlap)


@dataclass(frozen=True)
class _MicroBatch:
    """The seconds of one micro-batch on one stage, forward and backward."""

    linear: float
    attention: float
    memory_bound: float
    head: float
    exposed: float
    launch: float

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.memory_bound + self.head + self.exposed + self.launch


def step_time(step: SimulatedStep, config: TrainConfig, shape: ModelShape, machine: Machine) -> StepTime:
    """Return the time of a simulated or counted step on a machine."""
    layout, count = config.layout, step.micro_batches
    links = Links(machine.card, layout, step.world_size, machine.assumed)
    times = [_micro_batch(stage, step, config, shape, machine) for stage in step.stages]
    slowest = max(times, key=lambda time: time.total)
    chunks = layout.num_virtual_stages_per_pipeline_rank or 1
    bubble = (sum(time.total for time in times) - slowest.total) / chunks
    sends = max(links.seconds(stage, ("PP",)) for stage in step.stages) / 2  # both ways at once
    if chunks > 1:  # overlapped, but while the pipeline fills and empties
        filling = layout.pipeline_model_parallel_size / (count * chunks)
        sends *= min(filling + machine.assumed.exposed_interleaved, 1.0)
    gradients = max(
        _exposed_gradients(stage, time.total, links, config)
        for stage, time in zip(step.stages, times, strict=True)
    )
    return StepTime(
        linear=slowest.linear * count,
        attention=slowest.attention * count,
        memory_bound=slowest.memory_bound * count,
        head=slowest.head * count,
        exposed_layers=slowest.exposed * count,
        launch=slowest.launch * count,
        bubble=bubble,
        pipeline_sends=sends,
        exposed_gradients=gradients,
        optimizer=max(_optimizer(stage, machine) for stage in step.stages),
        host=machine.assumed.step_seconds,
    )


def real_tokens(step: SimulatedStep) -> float:
    """Return the tokens of samples, not of padding, in the whole step."""
    computed = step.micro_batches * step.pack_length * step.data_parallel_size
    return step.real_tokens_share * computed


def _micro_batch(
    stage: SimulatedStage, step: SimulatedStep, config: TrainConfig, shape: ModelShape, machine: Machine
) -> _MicroBatch:
    card, assumed, count = machine.card, machine.assumed, step.micro_batches
    links = Links(card, config.layout, step.world_size, assumed)
    bandwidth = card.memory_bandwidth * assumed.memory
    rate = card.bf16 * card.linear_bf16
    if machine.fp8:
        assert card.fp8, f"{card.name} has no FP8, which the settings' rules refuse"
        rate = card.fp8 * card.linear_fp8
    # Weights are read twice, float32 gradients read and written: what few tokens cannot hide.
    weights = 12 * stage.parameters / card.memory_bandwidth
    moved = stage.layers * _moved_bytes(step, config, shape, fp8=machine.fp8) / bandwidth
    exposed_tp = assumed.exposed_tp_overlapped if machine.tp_overlap else assumed.exposed_tp
    exposed = links.seconds(stage, ("TP",)) * exposed_tp + links.seconds(stage, ("CP", "EP"))
    times = _MicroBatch(
        linear=max(stage.flops.linear / count / rate, weights),
        attention=stage.flops.attention
        / count
        / (card.bf16 * assumed.attention)
        * _tiles(step, config, assumed),
        memory_bound=moved,
        head=_head(stage, step, config, shape, machine) if stage.flops.head else 0.0,
        exposed=exposed / count,
        launch=0.0,
    )
    short = max(stage.layers * assumed.launch_seconds - times.total, 0.0)
    return _MicroBatch(**{**vars(times), "launch": short})


def _tiles(step: SimulatedStep, config: TrainConfig, assumed: Assumed) -> float:
    """Return what attention computes ÷ what it needs, since it computes whole tiles."""
    lengths = np.asarray(step.sequence_lengths, float)
    cp = config.layout.context_parallel_size
    parts = 2 * cp if cp > 1 else 1
    whole = parts * assumed.tile * np.ceil(lengths / parts / assumed.tile)
    return float(np.square(whole).sum() / np.square(lengths).sum()) if len(lengths) else 1.0


def _moved_bytes(step: SimulatedStep, config: TrainConfig, shape: ModelShape, *, fp8: bool) -> float:
    """Return the bytes that a layer's memory-bound kernels read and write for a micro-batch, all fused.

    Numbers moved per token: a norm reads h and writes h, adding a residual reads 2 h and writes h, twice per
    layer; backward a norm 3 h, the addition 3 h. SwiGLU 3 f forward, 5 f backward. Rotary twice the query
    and key, both ways.
    """
    layout = config.layout
    tokens = step.pack_length / layout.context_parallel_size
    tp = layout.tensor_model_parallel_size
    hidden = shape.hidden_size / (tp if layout.sequence_parallel else 1)
    turned = (shape.query_size + shape.key_size) / tp * (2 if shape.qk_norm else 1)
    ffn = shape.ffn_hidden_size / tp
    forward, backward = 10 * hidden + 2 * turned, 12 * hidden + 2 * turned
    if shape.experts:
        ffn = shape.experts.per_token * shape.experts.ffn_hidden_size / tp
        forward += 4 * shape.experts.per_token * hidden  # sorted by expert, and back
        backward += 4 * shape.experts.per_token * hidden
    forward, backward = forward + 3 * ffn, backward + 5 * ffn
    if layout.context_parallel_size > 1:  # partial results are added in float32, once for each rank
        forward += 6 * shape.query_size / tp * layout.context_parallel_size
        backward += 6 * (shape.query_size + 2 * shape.key_size) / tp * layout.context_parallel_size
    if layout.recompute_granularity == "full":
        backward += forward
    element = 2 if step.bf16 else 4
    moved = (forward + backward) * element
    if fp8:  # inputs and gradients of four products: read, and written twice, one of them transposed
        moved += 5 * (4 * shape.hidden_size + (2 * shape.query_size + 2 * shape.key_size) / tp + 3 * ffn)
    return tokens * moved


def _head(
    stage: SimulatedStage, step: SimulatedStep, config: TrainConfig, shape: ModelShape, machine: Machine
) -> float:
    """Return the seconds of the head on one micro-batch: its products, and 6 bytes per logit for the loss."""
    layout, card = config.layout, machine.card
    bandwidth = card.memory_bandwidth * machine.assumed.memory
    rows = step.supervised_tokens / layout.context_parallel_size
    tp = layout.tensor_model_parallel_size
    columns = padded_vocab_size(shape, tp, layout.make_vocab_size_divisible_by) / tp
    chunks = max(rows / (config.objective.loss_chunk_tokens or HeadOptions.chunk_tokens), 1.0)
    logits = 6 * rows * columns + 8 * chunks * columns * shape.hidden_size  # and the weight's gradient
    products = stage.flops.head / step.micro_batches / (card.bf16 * card.linear_bf16)
    return products + logits / bandwidth


def _exposed_gradients(stage: SimulatedStage, micro_batch: float, links: Links, config: TrainConfig) -> float:
    """Return the seconds of a step's gradient and weight communication that computation does not hide.

    Gradients are reduced in buckets during the last micro-batch's backward pass, weights gathered during the
    first one's forward pass; the last bucket, and the first, have nothing to hide behind.
    """
    exposed = 0.0
    for each in stage.collectives:
        if each.group not in ("DP", "expert DP", "embedding"):
            continue
        seconds = links.of(each)
        is_gather = each.operation == "all_gather"
        overlapped = config.layout.overlap_param_gather if is_gather else config.layout.overlap_grad_reduce
        if overlapped and each.group != "embedding":
            hidden = micro_batch * (1 / 3 if is_gather else 2 / 3) * (1 - 1 / max(each.calls, 1))
            seconds = max(seconds / max(each.calls, 1), seconds - hidden)
        exposed += seconds
    return exposed


def _optimizer(stage: SimulatedStage, machine: Machine) -> float:
    """Return the seconds of all that is done once per step over gradients and weights.

    Bytes per parameter of the rank: 4 zeroed and 8 scaled. Of its own part: 4 for the norm, 8 clipped, and
    Adam reads 16 and writes 14.
    """
    own = stage.memory.optimizer / 12
    moved = 12 * stage.parameters + (4 + 8 + 30) * own
    if machine.fp8:
        moved += 4 * stage.parameters  # the weights' FP8 copies, once per step
    return moved / (machine.card.memory_bandwidth * machine.assumed.memory)
