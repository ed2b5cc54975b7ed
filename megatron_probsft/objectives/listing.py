"""Tables of objectives for people."""

from __future__ import annotations

from rich.table import Table

from megatron_probsft.objectives.families import FAMILIES
from megatron_probsft.objectives.objective import Objective


def families() -> Table:
    """Every registered form, with the range of its parameters."""
    found = Table("name", "loss f", "gradient weight s = −f′(p)·p", "range", "source")
    for family in FAMILIES:
        found.add_row(family.pattern, family.formula, family.weight, family.range, family.citation)
    return found


def table(objectives: list[Objective]) -> Table:
    """These objectives."""
    found = Table("name", "loss f", "gradient weight s = −f′(p)·p", "source")
    for objective in objectives:
        found.add_row(objective.name, objective.formula, objective.weight, objective.citation)
    return found
