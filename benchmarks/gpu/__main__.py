"""Is everything right and fast on this machine's GPU? One command, no download, under ten minutes on an H100.

    python -m benchmarks.gpu --output FOLDER
    python -m benchmarks.gpu --only objective head:liger --seconds 120
    python -m benchmarks.gpu --cpu-small        # the same code with tiny shapes, where there is no GPU

Prints a row as soon as it is measured, and rewrites results.json and results.md after each one, so that a
run that is cut off leaves what it had. When --seconds are over, the row that runs is stopped; it and those
after it are "not reached", which does not change the exit status: 1 where the machine, correctness or the
sanitizer has a row that went wrong. README.md beside this file says how to read them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu.kit.children import run_rows
from benchmarks.gpu.kit.parts import PARTS, wanted_parts
from benchmarks.gpu.kit.report import Report


def main() -> int:
    args = _arguments()
    deadline = time.monotonic() + args.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a child is not left behind
    report = Report(Path(args.output))
    options = {"small": args.cpu_small, "output": str(Path(args.output).absolute())}
    # The machine comes first: whether it has a GPU decides the sizes of all that follows.
    for part, text in [(PARTS["machine"], ""), *args.only]:
        for record in run_rows(part, options | {"text": text}, deadline):
            report.add(part.name, record)
        if part.name == "machine":
            options["small"] = options["small"] or not report.has_gpu
    return report.finish()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART[:TEXT]",
        help=f"these parts, or their rows with TEXT in the name; parts: {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=570,
        help="then the row that runs is stopped, and no other starts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="runs/gpu_kit", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--cpu-small", action="store_true", help="tiny shapes on the CPU, as without a GPU")
    args = parser.parse_args()
    try:
        args.only = wanted_parts(args.only)
    except ValueError as error:
        parser.error(str(error))
    return args


if __name__ == "__main__":
    sys.exit(main())
