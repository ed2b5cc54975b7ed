"""Shows the sweeps in one table, one picture and one JSON file, domains in the order of their mean p."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from megatron_probsft.runtime.folders import write_whole

_HEADINGS = (
    "domain", "mean p before", "objective", "held-out NLL", "mean p", "score", "95 % interval",
    "Jaro-Winkler", "minutes",
)  # fmt: skip


def write(folder: Path, results: list[dict[str, Any]], seconds: float) -> None:
    """Write summary.json, summary.png and report.md of the sweeps so far; each is complete when it appears.

    results: results.json of each sweep, with its folder and command.
    """
    ordered = by_probability(results)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "domains": ordered,
        "seconds_of_this_start": round(seconds, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    write_whole(folder / "summary.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "report.md", report(ordered))
    part = folder / "summary.part.png"
    draw(ordered).savefig(part, dpi=110)
    part.replace(folder / "summary.png")


def by_probability(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order the results from the domain that the base model knows best to the one that it knows least."""
    return sorted(results, key=lambda result: -result["probe"]["mean_p"])


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="the continuum", title_justify="left")
    for heading in _HEADINGS:
        table.add_column(
            heading, justify="left" if heading in ("domain", "objective") else "right", no_wrap=True
        )
    for cells in _cells(by_probability(results)):
        table.add_row(*cells)
    console.print(table)


def report(results: list[dict[str, Any]]) -> str:
    """Return the Markdown text: the table, where the data came from, and the command of each sweep."""
    lines = [f"| {' | '.join(cells)} |" for cells in (_HEADINGS, ["---"] * len(_HEADINGS), *_cells(results))]
    parts = ["# The continuum", "![scores and held-out NLL by domain](summary.png)", "\n".join(lines)]
    for result in results:
        base, sources = result["rows"][0], ", ".join(result["data"]["data_sources"])
        parts.append(
            f"{result['dataset']}: {result['model']} on {sources}; scored on {base['n']} problems × "
            f"{base['samples']} sample(s).\n\n    python {result['command']}"
        )
    return "\n\n".join(parts) + "\n"


def draw(results: list[dict[str, Any]]) -> Figure:
    """Draw a column for each domain: its scores with intervals above, held-out NLL below."""
    figure = Figure(figsize=(4.4 * len(results), 6.4), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for (score, nll), result in zip(axes.T, results, strict=True):
        rows = result["rows"]
        names = [row["name"] for row in rows]
        heights = np.array([row["accuracy"] for row in rows])
        bounds = np.array([row["accuracy_ci95"] for row in rows]).T
        colors = ["0.6", *(f"C{number}" for number in range(len(rows) - 1))]
        score.bar(names, heights, yerr=np.abs(bounds - heights), color=colors, capsize=3)
        if "jaro_winkler" in rows[0]:
            score.plot(names, [row["jaro_winkler"] for row in rows], "kD", ms=5, label="Jaro-Winkler")
            score.legend()
        place = f"mean p {result['probe']['mean_p']:.2f}, {result['probe']['place']}"
        _dress(score, f"{result['dataset']} ({place})", f"score on {rows[0]['n']} problems")
        score.set_ylim(bottom=0)
        nll.bar(names, [row["heldout_nll"] for row in rows], color=colors)
        _dress(nll, "", "held-out NLL per token")
    return figure


def _dress(axis: Axes, title: str, label: str) -> None:
    axis.set(title=title, ylabel=label)
    axis.tick_params(axis="x", labelrotation=30)


def _cells(results: list[dict[str, Any]]) -> Iterator[list[str]]:
    for result in results:
        for row in result["rows"]:
            low, high = row["accuracy_ci95"]
            yield [
                result["dataset"], f"{result['probe']['mean_p']:.3f}", row["name"],
                f"{row['heldout_nll']:.3f}", f"{row['heldout_mean_p']:.3f}", f"{row['accuracy']:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{row['jaro_winkler']:.3f}" if "jaro_winkler" in row else "",
                f"{row['training_minutes']:.1f}" if "training_minutes" in row else "",
            ]  # fmt: skip
