"""Prints what `--dry-run --gpu` and `--suggest-layout` estimate, with all that they take for granted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import TrainConfig, settings
from megatron_probsft.training.config.flag import dashed
from megatron_probsft.training.log.flops import model_flops
from megatron_probsft.training.simulate.report import SimulatedStep
from megatron_probsft.training.simulate.show_step import show_step
from megatron_probsft.training.simulate.simulate_step import simulate_step
from megatron_probsft.training.simulate.step_samples import StepSamples
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.throughput.cards import card_of
from megatron_probsft.training.throughput.links import NODE
from megatron_probsft.training.throughput.suggest_layout import (
    MARGIN,
    RESERVED_GIB,
    Job,
    Suggestion,
    suggest_layouts,
)
from megatron_probsft.training.throughput.time_model import StepTime, machine_of, real_tokens, step_time
from megatron_probsft.training.throughput.workload import described

_TRIED = 3  # layouts that are simulated until one fits


def show_estimates(
    config: TrainConfig, model: HFModel, samples: StepSamples, world_size: int, out: Console
) -> None:
    """Simulate a step and print its tables and its time: of the run's layout, or of the best one that fits.

    config: with a value for what follows from the device (`by_device`).

    Raises:
        UserError: none of the best layouts fits, simulated; or the run is in float32.
    """
    preview = config.preview
    assert preview.gpu
    said = "the step" if config.data.data else "without data"
    machine = machine_of(config, card_of(preview.gpu))
    job = Job(config, model.family, model.shape, samples, said, machine, world_size)
    if not preview.suggest_layout:
        step = simulate_step(config, model.folder, samples, world_size)
        show_step(step, out, preview.dry_run_json)
        show_step_time(job, step, out)
        return
    found = suggest_layouts(dataclasses.replace(job, config=_as_given(config, world_size)))
    show_suggestions(job, found, out)
    for number, each in enumerate(found[:_TRIED], 1):
        step = simulate_step(each.config, model.folder, samples, world_size)
        peak = max(stage.memory.peak for stage in step.stages)
        if peak > job.room:
            out.print(f"layout {number}: simulated, its {peak / 2**30:.1f} GiB do not fit; the next")
            continue
        given = flags(each.config) or "no flag of the layout"
        out.print(f"layout {number}, simulated: {given}", markup=False, soft_wrap=True)
        show_step(step, out, preview.dry_run_json)
        show_step_time(dataclasses.replace(job, config=each.config), step, out)
        return
    if found:
        raise UserError(
            f"none of the {min(len(found), _TRIED)} layouts that were simulated fits into {preview.gpu}: "
            "give a larger --world-size or another --gpu"
        )


def _as_given(config: TrainConfig, world_size: int) -> TrainConfig:
    """Return the settings without what follows from the device: for another layout it may be another."""
    names = [name for name, setting in settings().items() if setting.flag.by_device]
    usual = by_device(config.replace(**dict.fromkeys(names)), None, world_size, gpu=True)
    return config.replace(**{name: None for name in names if config.value(name) == usual.value(name)})


def show_step_time(job: Job, step: SimulatedStep, out: Console) -> None:
    """Print the estimated seconds of a simulated or counted step, its tokens per second, the assumptions."""
    time = step_time(step, job.config, job.shape, job.machine)
    out.print(f"estimated seconds of a step on {job.machine.card.name}:", highlight=False)
    out.print(_parts(time))
    out.print(f"estimated: {_rate(job, real_tokens(step), time)}", highlight=False)
    for line in assumptions(job):
        out.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)


def show_suggestions(job: Job, found: list[Suggestion], out: Console) -> None:
    """Print the layouts that were found to fit."""
    card = job.machine.card
    if not found:
        out.print(
            f"no layout of {job.world_size} × {card.name} holds this model: its weights, gradients and "
            f"optimizer states take more than {job.room / 2**30:.0f} GiB per GPU however they are divided; "
            "give a larger --world-size"
        )
        return
    out.print(_layouts(job, found))
    out.print(
        f"searched: TP within a node of {NODE}, with sequence parallelism; memory by the closed formula, of "
        f"{card.memory_gib:.0f} GiB {MARGIN:.0%} kept free and {RESERVED_GIB:.0f} GiB for CUDA and NCCL; "
        "layouts within 3 % of each other count as equal, the simplest first",
        highlight=False,
    )


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of the layout and the packs that are neither the default nor the device's."""
    return {
        name: config.value(name)
        for name, setting in settings().items()
        if (setting.group == "layout" or name == "micro_batch_size")
        and not setting.flag.by_device
        and config.value(name) != setting.default
    }


def flags(config: TrainConfig) -> str:
    """Return `changed_settings` as flags."""
    return " ".join(
        f"--{dashed(name)}" if value is True else f"--{dashed(name)} {value}"
        for name, value in changed_settings(config).items()
    )


def assumptions(job: Job) -> Iterator[str]:
    """Yield a sentence for each thing that the time model takes for granted."""
    card, assumed = job.machine.card, job.machine.assumed
    products = "bf16"
    if job.machine.fp8 and card.fp8:
        products = f"FP8, of {card.fp8 / 1e12:,.0f} TFLOP/s {card.linear_fp8:.0%} reached; the head in bf16"
    yield "nothing here was measured: every figure is estimated, by the data sheet's peaks and shares of them"
    yield f"{card.name}: {card.source}"
    yield (
        f"products in {products}; of {card.bf16 / 1e12:,.0f} TFLOP/s in bf16 {card.linear_bf16:.0%} reached "
        f"in products, {assumed.attention:.0%} in attention, in tiles of {assumed.tile} tokens"
    )
    yield (
        f"of {card.memory_bandwidth / 1e12:.2f} TB/s of memory bandwidth {assumed.memory:.0%}; norms, rotary "
        "embedding and SwiGLU are fused kernels"
    )
    tp = assumed.exposed_tp_overlapped if job.machine.tp_overlap else assumed.exposed_tp
    yield (
        f"in a node of {NODE} {card.link / 1e9:.0f} GB/s per GPU and direction, {assumed.link:.0%} reached; "
        f"between nodes {card.network / 1e9:.1f} GB/s per GPU, {assumed.network:.0%} reached"
    )
    yield (
        f"exposed: {tp:.0%} of TP's communication, all of CP's and EP's, "
        f"{assumed.exposed_interleaved:.0%} of the interleaved pipeline's sends; DP's as far as the last "
        "backward and the first forward pass do not cover it"
    )
    yield (
        f"the host needs {assumed.launch_seconds * 1e3:.1f} ms per layer and micro-batch and "
        f"{assumed.step_seconds * 1e3:.0f} ms per step; saving, validation and start-up are left out"
    )
    yield f"{job.said}: {described(job.samples)}"


def _parts(time: StepTime) -> Table:
    table = Table()
    for heading in ("part", "seconds", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for field in fields(time):
        seconds = getattr(time, field.name)
        table.add_row(field.name.replace("_", " "), f"{seconds:.4f}", f"{seconds / time.total:.1%}")
    table.add_row("step", f"{time.total:.4f}", "")
    return table


def _rate(job: Job, tokens: float, time: StepTime) -> str:
    return (
        f"{tokens / time.total:,.0f} tokens/s, {tokens / time.total / job.world_size:,.0f} per GPU, "
        f"MFU {_mfu(job, time):.1%}"
    )


def _mfu(job: Job, time: StepTime) -> float:
    """Return the model's FLOPs over what the cards could do in bf16."""
    lengths = np.asarray(job.samples.lengths) - 1
    flops = model_flops(job.shape, lengths, sum(job.samples.supervised))
    return flops / time.total / job.world_size / job.machine.card.bf16


def _layouts(job: Job, found: list[Suggestion]) -> Table:
    table = Table(title=f"layouts of {job.world_size} × {job.machine.card.name}, best first; all estimated")
    for heading in (
        "TP", "PP", "VPP", "CP", "EP", "DP", "layers", "recompute", "packs", "GiB", "s/step", "tok/s/GPU",
        "MFU",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for each in found:
        layout = each.config.layout
        last = layout.decoder_last_pipeline_num_layers
        again = "-"
        if layout.recompute_granularity:
            again = "all" if layout.recompute_method == "uniform" else str(layout.recompute_num_layers)
        table.add_row(
            *(str(size) for size in each.key[:2]),
            str(layout.num_virtual_stages_per_pipeline_rank or "-"),
            *(str(size) for size in each.key[2:]),
            str(each.data_parallel_size),
            f"last {last}" if last else "even",
            again,
            f"{each.micro_batches} × {each.pack_length:,}",
            f"{each.memory_gib:.0f}",
            f"{each.time.total:.3f}",
            f"{each.tokens_per_second / job.world_size:,.0f}",
            f"{_mfu(job, each.time):.1%}",
        )
    return table
