"""A mistake that a user can mend is one exception, and programs tell it in one line."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from megatron_probsft.runtime.processes.heartbeat import first_has_told, known_of_others, note_told
from megatron_probsft.runtime.processes.launch import launched_rank, leave_for_torchrun
from megatron_probsft.runtime.quiet import quiet_libraries

_PATIENCE = 5.0  # seconds in which rank 0, which meets most mistakes too, tells them first


class UserError(Exception):
    """The input is wrong. The message is one line: what is wrong, where, and what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wrap a program's main: a `UserError` becomes `error: …` on stderr and exit status 2.

    So does what the system says of a file or folder by name (no permission, a full disk). Ctrl-C ends with
    `interrupted` and 130, a reader that went away (`… | head`) with 141 and no word.

    Of several processes rank 0 tells it first, since every rank meets the same mistake. Under torchrun the
    line ends torchrun's report on the failure, which comes after all that a process prints itself; and a
    rank that torchrun does not end, after what rank 0 told, met a mistake of its own, and tells it with its
    number. Without torchrun a rank is silent if rank 0 has told a mistake, which is known as soon as they
    share a store; before, each tells its own. An error of a collective gets a note of processes that are
    silent or late, where one is known.

    From here on, libraries leave out what they would say in between (`quiet_libraries`).
    """
    quiet_libraries()
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        if launched_rank() == 0:
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in stdout's buffer has nowhere to go
        sys.exit(141)
    except RuntimeError as error:  # of a collective that waited in vain, as a rule
        if known := known_of_others():
            error.add_note(known)
        raise
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")


def _fail(message: str) -> NoReturn:
    rank = launched_rank()
    if rank:
        time.sleep(_PATIENCE)
    line = f"error: rank {rank}: {message}" if rank else f"error: {message}"
    if not leave_for_torchrun(line) and not (rank and first_has_told()):
        print(line, file=sys.stderr, flush=True)
        if not rank:
            note_told()
    sys.exit(2)
