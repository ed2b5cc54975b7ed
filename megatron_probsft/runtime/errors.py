"""The one exception for mistakes a user can mend, and the guard that prints it as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wrap a program's main: a `UserError` becomes `error: …` on stderr and exit status 2.

    So does what the system says of a file or folder by name (no permission, a full disk). Ctrl-C ends with
    `interrupted` and 130, a reader that went away (`… | head`) with 141 and no word. Under torchrun only rank
    0 prints, since every rank meets the same mistake.
    """
    try:
        yield
    except UserError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in stdout's buffer has nowhere to go
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"error: {os.fsdecode(error.filename)}: {error.strerror}", 2)


def _end(text: str, status: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
    sys.exit(status)
