"""List the objectives and draw them: python -m megatron_probsft.objectives [NAME …] [--output FILE.png]

Without names, every registered one, drawn with example parameters; a name may be `package.module:function`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_probsft.objectives.families import FAMILIES
from megatron_probsft.objectives.plot import plot_objectives
from megatron_probsft.objectives.registry import Objective, ObjectiveError, get_objective


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m megatron_probsft.objectives", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("objectives.png"), help="objectives.png")
    arguments = parser.parse_args()
    if arguments.output.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--output must end in .png, .pdf or .svg, got {str(arguments.output)!r}")
    try:
        _run(arguments.names, arguments.output)
    except ObjectiveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --output {arguments.output} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _run(names: list[str], output: Path) -> None:
    objectives = [get_objective(name) for name in names or [family.example for family in FAMILIES]]
    # A file or pipe has no width of its own: one line per objective.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
    console.print(_table(objectives) if names else _families())
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_objectives(objectives, output)
    print(f"wrote {output.resolve()}")


def _families() -> Table:
    table = Table("name", "loss f", "gradient weight s = −f′(p)·p", "range", "source")
    for family in FAMILIES:
        table.add_row(family.pattern, family.formula, family.weight, family.range, family.citation)
    return table


def _table(objectives: list[Objective]) -> Table:
    table = Table("name", "loss f", "gradient weight s = −f′(p)·p", "source")
    for objective in objectives:
        table.add_row(objective.name, objective.formula, objective.weight, objective.citation)
    return table


if __name__ == "__main__":
    main()
