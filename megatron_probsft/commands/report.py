"""Show runs side by side: one self-contained HTML page, Markdown, JSON.

probsft report runs/quickstart/base runs/quickstart/original runs/quickstart/p --output runs/report

RUN is a trainer's run folder, or a folder that holds megatron/ (a trainer's run) and/or score/ (the
--output of probsft evaluate). What a run does not have is left out, and the report says so.

OUTPUT/report.html  opens without a network     OUTPUT/report.md, figures/  the same as Markdown and PNG
OUTPUT/report.json  every number of both
"""

import argparse
from pathlib import Path

from megatron_probsft.reporting.report import write_report
from megatron_probsft.runtime.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, required=True, help="folder; a report in it is replaced")
    args = parser.parse_args()
    with one_line_errors():
        written = write_report(args.runs, args.output)
        print(f"wrote {written}, report.md, report.json")


if __name__ == "__main__":
    main()
