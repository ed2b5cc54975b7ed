"""The one exception for mistakes a user can mend, and the guard that prints it as one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_probsft.runtime.launch import launched_rank

_PATIENCE = 5.0  # seconds in which rank 0, which meets most mistakes too, tells them first


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wrap a program's main: a `UserError` becomes `error: …` on stderr and exit status 2.

    Of several processes rank 0 tells it, since every rank meets the same mistake. Under torchrun the line
    ends torchrun's report on the failure, which comes after all that a process prints itself; and a rank that
    torchrun does not end, after what rank 0 told, met a mistake of its own, and tells it with its number.
    """
    try:
        yield
    except UserError as error:
        rank, report = launched_rank(), os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report:
            if rank:
                time.sleep(_PATIENCE)
            _tell_torchrun(Path(report), f"error: rank {rank}: {error}" if rank else f"error: {error}")
        elif rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _tell_torchrun(report: Path, line: str) -> None:
    """As torch's `record` does, without importing torch; the line break sets the line apart in the report."""
    message = {"message": f"\n{line}", "extraInfo": {"timestamp": str(int(time.time()))}}
    report.write_text(json.dumps({"message": message}), encoding="utf-8")
