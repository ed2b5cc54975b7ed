"""Programs leave out what libraries say; importing the package does not."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import pkgutil
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

import pytest

import megatron_probsft
from megatron_probsft.runtime.errors import one_line_errors

WATCHED: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (warnings, ("filterwarnings", "simplefilter", "resetwarnings")),
    (logging.Logger, ("setLevel", "addHandler", "addFilter")),
    (logging, ("basicConfig", "disable", "captureWarnings")),
)


def _calls_while_imported(sender: Connection) -> None:
    """In a process of its own: import every module anew, and send what it calls of those, and how many."""
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def called(*arguments: Any, **options: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame.f_globals["__name__"] in ("warnings", "logging"):
                frame = frame.f_back
            if frame.f_globals["__name__"].startswith("megatron_probsft"):
                calls.append(f"{name} in {frame.f_globals['__name__']}, line {frame.f_lineno}")
            return original(*arguments, **options)

        setattr(owner, name, called)

    for owner, names in WATCHED:
        for name in names:
            watch(owner, name)
    modules = [one.name for one in pkgutil.walk_packages(megatron_probsft.__path__, "megatron_probsft.")]
    for name in [name for name in sys.modules if name.startswith("megatron_probsft")]:
        del sys.modules[name]
    for name in modules:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    sender.send((calls, len(modules)))


def test_importing_any_module_leaves_warnings_and_loggers_alone() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Forked: the libraries, which change filters too, are there already.
    child = multiprocessing.get_context("fork").Process(target=_calls_while_imported, args=(sender,))
    child.start()
    sender.close()
    calls, modules = receiver.recv()
    child.join()
    assert calls == []
    assert modules > 100


@pytest.mark.parametrize(
    ("message", "category", "shown"),
    [
        ("Apex is not installed. Falling back", UserWarning, False),
        ("`torch.distributed.reduce_op` is deprecated", FutureWarning, False),
        ("invalid escape sequence '\\d'", SyntaxWarning, False),
        ("invalid escape sequence '\\d'", UserWarning, True),
        ("the user's own", UserWarning, True),
    ],
)
def test_a_program_leaves_out_what_tells_nothing(message: str, category: type[Warning], shown: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with one_line_errors():
            warnings.warn(message, category, stacklevel=1)
    assert bool(seen) == shown
