"""What a function does in a forked child, which ends with it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

FORK = get_context("fork")


def outcome_in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns there, or its traceback as a text."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_child, args=(sender, function, args))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _child(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        sender.send(function(*args))
    except BaseException:
        sender.send(traceback.format_exc())
    sender.close()
    os._exit(0)
