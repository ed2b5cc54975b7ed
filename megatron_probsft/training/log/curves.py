"""The picture of a run: loss, NLL, mean p, and the histogram of p before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draw a run's records of training (lines) and validation (dots); the format is that of the suffix."""
    steps = [record for record in records if record["kind"] == "train"]
    validations = [record for record in records if record["kind"] == "validation"]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, mean_p, histogram = figure.subplots(1, 3)
    for axes, names in ((losses, ("loss", "nll")), (mean_p, ("mean_p",))):
        for name in names:
            _curve(axes, name, steps, validations)
        axes.set(xlabel="step (dots: validation)")
        axes.grid(alpha=0.3)
    losses.set(title="per supervised token")
    losses.legend()
    mean_p.set(title="mean p of the label token")
    shown = validations or steps
    for record in (shown[0], shown[-1]):
        shares = record["p_histogram"]
        label = f"{record['kind']}, step {record['iteration']}"
        histogram.stairs(shares, np.linspace(0, 1, len(shares) + 1), label=label)
    histogram.set(title="p of the label token", ylabel="share of tokens")
    histogram.legend()
    figure.savefig(path, dpi=110)


def _curve(axes: Axes, name: str, steps: list[dict[str, Any]], validations: list[dict[str, Any]]) -> None:
    label = {"loss": "loss", "nll": "NLL", "mean_p": "mean p"}[name]
    (line,) = axes.plot(*_points(steps, name), lw=1, label=label)
    axes.plot(*_points(validations, name), "o", ms=4, color=line.get_color())


def _points(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return steps and values; a value that was not finite leaves a gap."""
    values = [float("nan") if record[name] is None else record[name] for record in records]
    return [record["iteration"] for record in records], values
