"""Draws the report's plots: small panels, one colour per run, no legends (the page has one)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

# Per run on light and on dark ground; after eight runs the colours come again, dashed.
LIGHT = ("#0b62b8", "#c4420e", "#13805c", "#8a3fa0", "#916400", "#c22a6b", "#2f7589", "#5f5f5f")
DARK = ("#5aa9f0", "#f58a5b", "#4cc79a", "#c994e4", "#dcb04a", "#f284b2", "#7cc3da", "#b9b9b9")
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
_INK, _FAINT = "#1f2329", "#8a9099"  # become the page's text colour and its lines' colour
_STYLE: Any = {
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 10,
    "ytick.labelsize": 10, "text.color": _INK, "axes.labelcolor": _INK, "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK, "xtick.color": _FAINT, "ytick.color": _FAINT, "axes.edgecolor": _FAINT,
    "grid.color": _FAINT, "grid.alpha": 0.3, "axes.grid": True, "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip
_CURVES = (
    ("validation", "nll", "validation NLL"),
    ("validation", "mean_p", "validation mean p"),
    ("curves", "grad_norm", "gradient norm"),
    ("curves", "nll", "training NLL"),
    ("curves", "mean_p", "training mean p"),
    ("curves", "loss", "training loss, each run's own objective"),
)


@dataclass(frozen=True)
class Panel:
    """One plot, with the section of the report that it belongs to, its file name and its title."""

    section: str  # curves, histograms, mass or scores
    name: str
    title: str
    figure: Figure

    def svg(self) -> str:
        """Return an <svg> element for a page that defines --run-0 … --run-7, --ink and --faint."""
        buffer = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(buffer, format="svg", transparent=True)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>|<!--.*?-->", "", text, flags=re.DOTALL)
        # Names of groups and of the namespaces say nothing in a page, and would be there twice.
        text = re.sub(r'<g id="[^"]*"', "<g", text)
        text = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", text[:400]) + text[400:]
        text = text.replace("xlink:href", "href")
        for index, colour in enumerate(LIGHT):
            text = text.replace(colour, f"var(--run-{index})")
        text = text.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
        return text.replace("<svg", '<svg role="img"', 1)

    def write(self, folder: Path) -> None:
        """Write NAME.png, on white, into the folder; a plot of several runs gets a legend."""
        with matplotlib.rc_context(_STYLE):
            axes = self.figure.axes[0]
            lines, names = axes.get_legend_handles_labels()
            style = {"loc": "outside lower left", "ncols": 2, "frameon": False, "fontsize": 9}
            axes.set_title(self.title, loc="left")  # which the page has in text
            legend = self.figure.legend(lines, [shortened(name, 22) for name in names], **style)
            self.figure.savefig(folder / f"{self.name}.png", dpi=150)
            legend.remove()
            axes.set_title("", loc="left")


def draw(content: dict[str, Any]) -> list[Panel]:
    """Draw every plot that the content has data for."""
    with matplotlib.rc_context(_STYLE):
        return [*_curves(content), *_histograms(content), *_mass(content), *_scores(content)]


def colour(index: int) -> str:
    """Return the colour, on light ground, of the run with that index."""
    return LIGHT[index % len(LIGHT)]


def dash(index: int) -> Any:
    """Return the line style of a run: it changes once all colours are used."""
    return _DASHES[index // len(LIGHT) % len(_DASHES)]


def _panel(height: float = 2.7) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, height), layout="constrained")
    return figure, figure.subplots()


def _curves(content: dict[str, Any]) -> Iterator[Panel]:
    for kind, name, title in _CURVES:
        figure, axes = _panel()
        marked: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.5} if kind == "validation" else {"lw": 1.2}
        for index, run in enumerate(content["runs"]):
            if run[kind]["iteration"]:
                style = {"color": colour(index), "linestyle": dash(index), "label": run["name"]} | marked
                axes.plot(run[kind]["iteration"], _gaps(run[kind][name]), **style)
        if not axes.lines:
            continue
        axes.set(xlabel="step")
        axes.margins(x=0.03)
        low, high = axes.get_xlim()
        axes.set_xlim(low, max(high, low + 1))  # one point alone: steps stay whole
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        if name == "grad_norm" and np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        yield Panel("curves", f"{kind.rstrip('s')}_{name}", title, figure)


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _histograms(content: dict[str, Any]) -> Iterator[Panel]:
    runs = content["runs"]
    shares = [one["shares"] for run in runs for one in run["histograms"].values()]
    highest = max((max(one) for one in shares), default=0)
    for index, run in enumerate(runs):
        if not run["histograms"]:
            continue
        figure, axes = _panel(2.3)
        for when, one in run["histograms"].items():
            edges = np.linspace(0, 1, len(one["shares"]) + 1)
            if when == "after":
                axes.stairs(one["shares"], edges, fill=True, color=colour(index), alpha=0.35)
                axes.stairs(one["shares"], edges, color=colour(index), lw=1.3)
            else:
                axes.stairs(one["shares"], edges, color=_INK, lw=1.3, linestyle=(0, (2, 1.5)))
        # So that a share of 1 % can be seen beside one of 80 %.
        axes.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
        ticks = [tick for tick in (0, 0.01, 0.05, 0.2, 0.5, 1) if tick <= highest * 1.2]
        axes.set(xlim=(0, 1), ylim=(0, highest * 1.1), yticks=ticks, xlabel="p of the label token")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        steps = " → ".join(f"step {one['step']}" for one in run["histograms"].values())
        yield Panel("histograms", f"histogram_{index + 1}", f"{run['name']}, {steps}", figure)


def _mass(content: dict[str, Any]) -> Iterator[Panel]:
    for when, title in (("before", "before training"), ("after", "after training")):
        figure, axes = _panel()
        known = [(i, run["gradient_mass"]) for i, run in enumerate(content["runs"])]
        known = [(i, mass[when]) for i, mass in known if when in mass]
        for place, (index, mass) in enumerate(known):
            width = 3 - 1.7 * place / max(1, len(known) - 1)  # thinner and thinner: equal ones show
            edges = np.linspace(0, 1, len(mass) + 1)
            style = {
                "color": colour(index),
                "linestyle": dash(index),
                "label": content["runs"][index]["name"],
            }
            axes.stairs(mass, edges, lw=width, **style)
        axes.set(xlim=(0, 1), xlabel="p of the label token", ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if known:
            yield Panel("mass", f"gradient_mass_{when}", title, figure)


def _scores(content: dict[str, Any]) -> Iterator[Panel]:
    runs = content["runs"]
    scored = [(index, run) for index, run in enumerate(runs) if run["scores"]]
    benchmarks = dict.fromkeys(name for _, run in scored for name in run["scores"])
    tops = [
        n.get("accuracy_ci95", [0, n["accuracy"]])[1] for _, run in scored for n in run["scores"].values()
    ]
    for place, benchmark in enumerate(benchmarks):
        rows = [(i, run["name"], run["scores"][benchmark]) for i, run in scored if benchmark in run["scores"]]
        figure, axes = _panel(0.75 + 0.27 * len(rows))
        for y, (index, _, numbers) in enumerate(rows):
            low, high = numbers.get("accuracy_ci95") or [numbers["accuracy"]] * 2
            axes.plot([low, high], [y, y], color=colour(index), lw=2, solid_capstyle="butt", alpha=0.6)
            axes.plot(numbers["accuracy"], y, "o", ms=6, color=colour(index))
        axes.set_yticks(range(len(rows)), [shortened(name, 18) for _, name, _ in rows])
        axes.set(xlim=(0, min(1.0, max(tops) * 1.08) or 1), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        title = "average over benchmarks" if benchmark == "average" else benchmark
        yield Panel("scores", f"score_{place + 1}", f"{title}, accuracy", figure)


def shortened(text: str, most: int) -> str:
    """Return the text, without its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"
