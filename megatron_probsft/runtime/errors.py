"""The one exception for mistakes a user can mend, and the guard that prints it as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wrap a program's main: a `UserError` becomes `error: …` on stderr and exit status 2.

    Under torchrun only rank 0 prints, since every rank meets the same mistake.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
