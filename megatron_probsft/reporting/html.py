"""Renders the report as one page that needs nothing else: styles and plots are in it, and no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_probsft.reporting import tables
from megatron_probsft.reporting.figures import DARK, LIGHT, Panel
from megatron_probsft.reporting.text import NOTHING, excerpt, problem_name, title_of


def render(content: dict[str, Any], panels: Sequence[Panel]) -> str:
    """Return the page. Every text of a run is escaped; only the plots are inserted as they are."""
    environment = Environment(
        loader=PackageLoader("megatron_probsft.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    runs = content["runs"]
    title, subtitle = title_of(content)
    return environment.get_template("page.html.j2").render(
        title=title, subtitle=subtitle, light=LIGHT, dark=DARK, runs=runs,
        several=len(runs) > 1, nothing=NOTHING,
        tables={
            name: getattr(tables, name)(content)
            for name in ("summary", "configuration", "shares", "scores", "verdicts")
        },
        missing=tables.missing(content),
        mass_notes=tables.mass_notes(content),
        score_name=tables.score_name(content),
        panels={
            section: [
                {"title": panel.title, "svg": Markup(panel.svg())}
                for panel in panels
                if panel.section == section
            ]
            for section in ("scores", "curves", "histograms", "mass")
        },
        smoothed=max(run["curves"]["steps_per_point"] for run in runs),
        bin_width=next(
            (f"{1 / len(one['shares']):g}" for run in runs for one in run["histograms"].values()), None
        ),
        trained=[index for index, run in enumerate(runs) if run["curves"]["iteration"]],
        weighed=[index for index, run in enumerate(runs) if run["gradient_mass"]],
        examples=[_shown(example, runs) for example in content["changed_verdicts"]["examples"]],
    )  # fmt: skip


def _shown(example: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the example with shortened texts and with the run's index, which gives its colour."""
    indices = {run["name"]: index for index, run in enumerate(runs)}
    shown = {
        "name": problem_name(example),
        "question": excerpt(example["question"]), "answer": excerpt(example["answer"]),
    }  # fmt: skip
    for side in ("right", "wrong"):
        one = example[side]
        shown[side] = one | {
            "index": indices[one["run"]], "generation": excerpt(one["generation"]),
            "prediction": None if one["prediction"] is None else excerpt(str(one["prediction"])),
        }  # fmt: skip
    return shown
