"""The readings of a probe as a table, a picture and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table

from megatron_probsft.probing.probe import PAPER, Reading, advise
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.training import ProbeReport


def table(readings: list[Reading]) -> Group:
    """Return the readings by source, where on the continuum they are, and the paper's numbers beside."""
    found = Table(title="p of the label tokens, before training", title_justify="left")
    found.add_column("source", overflow="fold")  # the names that tell sources apart are at their ends
    for heading in ("samples", "tokens", "mean p", "median", "p < 0.1", "p ≥ 0.55", "NLL", "entropy"):
        found.add_column(heading, justify="right")
    found.add_column("place")
    for reading in readings:
        means = reading.means
        found.add_row(
            reading.source, f"{reading.samples:,}", f"{means.tokens:,}", f"{means.mean_p:.3f}",
            f"{reading.median_p:.3f}", f"{means.share_below(0.1):.0%}", f"{means.share_above(0.55):.0%}",
            f"{means.nll:.3f}", f"{means.entropy:.3f}", advise(means.mean_p).place,
        )  # fmt: skip
    paper = Table(title="arXiv 2510.00526 found", title_justify="left")
    for heading in ("domain", "mean p", "−log p against −p"):
        paper.add_column(heading)
    for domain, (low, high), outcome in PAPER:
        paper.add_row(domain, f"{low:.2f} to {high:.2f}", outcome)
    places = {(advice := advise(reading.means.mean_p)).place: advice for reading in readings}
    lines = [
        f"[b]{place}[/b]: {advice.reason}. To try: {', '.join(advice.objectives)}"
        for place, advice in places.items()
    ]
    return Group(found, paper, *lines)


def write(readings: list[Reading], folder: Path) -> None:
    """`probe.json` and `probe.png` in the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    content = ProbeReport(readings=[reading.record() for reading in readings]).to_json()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for reading in readings:
        shares = reading.means.histogram
        label = f"{reading.source.rpartition('/')[2]}: mean {reading.means.mean_p:.2f}"
        axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), label=label, lw=1.5)
    axes.set(xlabel="p of the label token", ylabel="share of tokens", title="before training")
    axes.legend()
    figure.savefig(folder / "probe.png", dpi=110)
    write_whole(folder / "probe.json", json.dumps(content, indent=2) + "\n")  # the mark of a finished probe
