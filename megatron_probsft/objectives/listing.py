"""Tables of objectives for people."""

from __future__ import annotations

from rich.table import Table

from megatron_probsft.objectives.forms import FORMS
from megatron_probsft.objectives.objective import Objective

_WEIGHT = "gradient weight s = −f′(p)·p"


def forms_table() -> Table:
    """Return a table of every registered form, with the range of its numbers."""
    found = Table("name", "loss f", _WEIGHT, "range", "source")
    for form in FORMS:
        found.add_row(form.pattern, form.formula, form.weight, form.range, form.citation)
    return found


def objectives_table(objectives: list[Objective]) -> Table:
    """Return a table of these objectives."""
    found = Table("name", "loss f", _WEIGHT, "source")
    for objective in objectives:
        found.add_row(objective.name, objective.formula, objective.weight, objective.citation)
    return found
