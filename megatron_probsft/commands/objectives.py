"""List the objectives and draw them: probsft objectives [NAME …] [--output FILE.png]

Without names it lists every registered one and draws it with example parameters. A name may be
`package.module:function`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="for example GeneralFamily-8 (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw them into this .png, .pdf or .svg")
    arguments = parser.parse_args()
    with one_line_errors():
        output = arguments.output
        if output and output.suffix not in (".png", ".pdf", ".svg"):
            raise UserError(f"--output must end in .png, .pdf or .svg, got {str(output)!r}")
        _run(arguments.names, output)


def _run(names: list[str], output: Path | None) -> None:
    # Here: torch takes seconds to import, and matplotlib is needed for --output only.
    from megatron_probsft.objectives import listing
    from megatron_probsft.objectives.forms import FORMS
    from megatron_probsft.objectives.registry import ObjectiveError, get_objective

    try:
        objectives = [get_objective(name) for name in names or [form.example for form in FORMS]]
    except ObjectiveError as error:
        raise UserError(str(error)) from None
    # A file or pipe has no width of its own: one line per objective.
    found = listing.objectives_table(objectives) if names else listing.forms_table()
    console(200, markup=False).print(found)
    if output:
        from megatron_probsft.objectives.plot import plot_objectives

        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            plot_objectives(objectives, output)
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
        print(f"wrote {output.resolve()}")


if __name__ == "__main__":
    main()
