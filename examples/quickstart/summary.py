"""Shows the quick start's result as a table, a JSON file and a picture."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table


def show(console: Console, rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    """Print one row per model."""
    table = Table(title=f"{data['task']}: {rows[0]['n']} held-out questions")
    for column in ("model", "held-out NLL", "mean p", "accuracy", "95 % interval", "minutes"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.add_row(
            row["name"],
            f"{row['heldout_nll']:.3f}",
            f"{row['heldout_mean_p']:.3f}",
            f"{row['accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row['seconds'] / 60:.1f}",
        )
    console.print(table)


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    curves: dict[str, list[dict[str, Any]]],
    commands: list[str],
    data: dict[str, Any],
    seconds: float,
) -> None:
    """Write `summary.json` and `summary.png`; curves holds each objective's metrics records."""
    content = {
        "rows": rows,
        "commands": commands,
        "task": data,
        "seconds_total": round(seconds, 1),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
    }
    (folder / "summary.json").write_text(json.dumps(content, indent=2) + "\n")
    _draw(curves).savefig(folder / "summary.png", dpi=130)
    plt.close("all")


def _draw(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    figure, (nll, mean_p, histogram) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    before: list[float] = []
    for objective, records in curves.items():
        train = [record for record in records if record["kind"] == "train"]
        validations = [record for record in records if record["kind"] == "validation"]
        before = validations[0]["p_histogram"]
        steps = [record["iteration"] for record in train]
        for axis, key in ((nll, "nll"), (mean_p, "mean_p")):
            (line,) = axis.plot(steps, [record[key] for record in train], lw=1, alpha=0.8, label=objective)
            points = [(record["iteration"], record[key]) for record in validations]
            axis.plot(*zip(*points, strict=True), "o", color=line.get_color(), ms=4)
        _steps(histogram, validations[-1]["p_histogram"], label=f"after {objective}")
    _steps(histogram, before, label="before", color="black", ls=":")
    for axis, label in ((nll, "NLL per supervised token"), (mean_p, "mean p of the label token")):
        axis.set(xlabel="step (dots: held-out)", title=label)
        axis.legend()
    histogram.set(xlabel="p of the label token", title="held-out tokens", ylabel="share of tokens")
    histogram.legend()
    return figure


def _steps(axis: Axes, shares: list[float], **style: Any) -> None:
    axis.stairs(shares, np.linspace(0, 1, len(shares) + 1), lw=1.3, **style)
