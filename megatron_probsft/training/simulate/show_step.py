"""Prints a simulated step: memory, operations and collectives by pipeline stage, and what was assumed."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_probsft.training.simulate.report import Collective, SimulatedStep

_HEADINGS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer", "activations": "activations",
    "head": "head", "comm.": "communication", "peak": "peak", "save": "save_host", "resume": "resume_host",
}  # fmt: skip


def show_step(step: SimulatedStep, out: Console, json_file: str | None = None) -> None:
    """Print the step's tables, and write all of its figures to a JSON file if one is named."""
    out.print(
        f"one step on {step.world_size:,} process(es), simulated: {step.micro_batches} micro-batch(es) of "
        f"{step.pack_length:,} tokens on each, {step.supervised_tokens:,} of them supervised",
        soft_wrap=True,
    )
    out.print(_memory(step))
    out.print(_collectives(step))
    for line in step.assumptions:
        out.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    if json_file:
        Path(json_file).write_text(json.dumps(step.as_json(), indent=1) + "\n")
        out.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


def _memory(step: SimulatedStep) -> Table:
    table = Table(
        title="GiB per rank at the peak of a step; of the host at a save, a resume; TFLOP per rank and step"
    )
    for heading in ("stage", *_HEADINGS, "TFLOP"):
        table.add_column(heading, justify="right")
    for stage in step.stages:
        sizes = [f"{getattr(stage.memory, kind) / 2**30:.2f}" for kind in _HEADINGS.values()]
        flops = f"{stage.flops.total / 1e12:,.1f}"
        table.add_row(str(stage.stage), *sizes, flops)
    return table


def _collectives(step: SimulatedStep) -> Table:
    """Return a row for each kind of call, of the stage that sends most."""
    most: dict[tuple[str, str], Collective] = {}
    for stage in step.stages:
        for one in stage.collectives:
            key = (one.group, one.operation)
            if key not in most or one.bytes > most[key].bytes:
                most[key] = one
    table = Table(title="collectives per rank and step, of the stage with most; GiB of whole tensors")
    for heading in ("group", "ranks", "operation", "calls", "GiB"):
        table.add_column(heading, justify="left" if heading in ("group", "operation") else "right")
    for one in sorted(most.values(), key=lambda one: -one.bytes):
        size = f"{one.bytes / 2**30:.3f}"
        table.add_row(one.group, str(one.group_size), one.operation, f"{one.calls:,}", size)
    return table
