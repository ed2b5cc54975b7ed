"""Renders the report as Markdown, with its plots as PNG files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from megatron_probsft.reporting import tables
from megatron_probsft.reporting.figures import Panel
from megatron_probsft.reporting.tables import Table
from megatron_probsft.reporting.text import excerpt, problem_name, title_of


def render(content: dict[str, Any], panels: Sequence[Panel], folder: str) -> str:
    """Return the text; plots are linked as PNG files of `folder`, relative to where the text lies."""
    title, subtitle = title_of(content)
    sections = [f"# {escaped(title)}", escaped(subtitle), _table(tables.summary(content))]
    sections.append(_items(tables.missing(content)))
    if any(run["scores"] for run in content["runs"]):
        sections += ["## Scores", _plots(panels, "scores", folder), _table(tables.scores(content))]
    if len(content["runs"]) > 1:
        differences = tables.configuration(content)
        none = "None but the folders that the runs were written to."
        sections += ["## Configuration differences", _table(differences) if differences.rows else none]
    if any(panel.section == "curves" for panel in panels):
        sections += ["## Learning curves", _plots(panels, "curves", folder)]
        sections.append(_table(tables.validations(content)))
    if any(panel.section == "histograms" for panel in panels):
        sections += [
            "## Token probabilities before and after",
            _plots(panels, "histograms", folder),
            "## Gradient mass by probability",
            "Share of tokens × s(p), s(p) = −f′(p)·p, normalised to 100 %.",
            _items(tables.mass_notes(content)), _plots(panels, "mass", folder),
            _table(tables.shares(content)),
        ]  # fmt: skip
    verdicts = tables.verdicts(content)
    if verdicts.rows:
        sections += [
            "## Generations that changed verdict",
            "The same problem, sample 0: right in the row's run, wrong in the column's.",
            _table(verdicts),
        ]
        sections += [_example(example) for example in content["changed_verdicts"]["examples"]]
    return "\n\n".join(filter(None, sections)) + "\n"


def escaped(text: str) -> str:
    """Return the text as one line that Markdown shows as it is, in a table too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"\s+", " ", re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text))


def fenced(text: str) -> str:
    """Return a code block whose fence does not occur in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    align = ["---" if i < table.texts else "---:" for i in range(len(table.headings))]
    lines = [map(escaped, table.headings), align, *(map(escaped, row) for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _plots(panels: Sequence[Panel], section: str, folder: str) -> str:
    return "\n".join(
        f"![{escaped(panel.title)}]({folder}/{panel.name}.png)"
        for panel in panels
        if panel.section == section
    )


def _example(example: dict[str, Any]) -> str:
    parts = [
        f"### {escaped(problem_name(example))}",
        fenced(excerpt(example["question"])),
        f"answer: {escaped(excerpt(example['answer']))}",
    ]
    for side in ("right", "wrong"):
        one = example[side]
        parts += [f"{escaped(one['run'])}: **{one['verdict']}**", fenced(excerpt(one["generation"]))]
    return "\n\n".join(parts)
