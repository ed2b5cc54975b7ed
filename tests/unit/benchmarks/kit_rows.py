"""A part of the kit whose rows go wrong in every way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.kit.place import NotHereError, Place, WrongError


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    assert place.small
    return {
        "good": lambda: print("a library says something") or {"result": "1 ms"},
        "not here": lambda: _raise(NotHereError("no such card")),
        "wrong": lambda: _raise(WrongError("off by 2")),
        "raises": lambda: _raise(ImportError("no\nsuch library")),
        "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV) or {},
        "hangs": lambda: time.sleep(600) or {},
        "exits": lambda: os._exit(3),
        "last": lambda: {"result": "2 ms"},
    }


def _raise(error: Exception) -> Any:
    raise error
