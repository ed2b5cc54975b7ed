"""Objectives as a picture: loss and gradient weight over p, side by side."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_probsft.objectives.objective import Objective, gradient_weight
from megatron_probsft.objectives.spread import VOCABULARY, spread_statistics

_COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
_DASHES = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
_LARGEST_LOSS, _LARGEST_WEIGHT = 4.0, 3.0  # what lies above is cut off


def plot_objectives(objectives: list[Objective], path: Path) -> None:
    """Draw f(p) and s(p) of each objective into `path`, in the format of its suffix."""
    figure = Figure(figsize=(16, max(6.0, 1 + 0.29 * len(objectives))), layout="constrained")
    left, right = figure.subplots(1, 2)
    log_p = torch.linspace(1e-4, 1, 4000, dtype=torch.float64).log().float()
    statistics = spread_statistics(log_p)
    styles = itertools.cycle(itertools.product(_DASHES, _COLOURS))
    for index, (objective, (dashes, colour)) in enumerate(zip(objectives, styles, strict=False)):
        width = 4 - 2.8 * index / len(objectives)  # thinner and thinner, so that equal curves show
        style = {"label": objective.name, "color": colour, "linestyle": dashes, "linewidth": width}
        left.plot(log_p.exp(), objective(log_p, **statistics), **style)
        right.plot(log_p.exp(), gradient_weight(objective, log_p, **statistics), **style)
    _panel(left, f"loss f(p), up to {_LARGEST_LOSS:g}", _LARGEST_LOSS)
    _panel(right, f"gradient weight s(p) = −f′(p)·p, up to {_LARGEST_WEIGHT:g}", _LARGEST_WEIGHT)
    assumed = None
    if any(objective.needs for objective in objectives):
        assumed = f"the other tokens share\n1 − p evenly (V = {VOCABULARY})"
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        fontsize=9,
        handlelength=4,
        title=assumed,
        title_fontsize=9,
    )
    figure.savefig(path, dpi=130)


def _panel(axes: Axes, title: str, top: float) -> None:
    axes.set(title=title, xlabel="probability p of the label", xlim=(0, 1), ylim=(-0.02 * top, top))
    axes.grid(alpha=0.3)
