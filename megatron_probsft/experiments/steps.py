"""Runs the commands of an experiment in order, so that finished ones are never run again."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_probsft.experiments.records import check_record, write_record
from megatron_probsft.experiments.words import shown_path
from megatron_probsft.runtime.errors import UserError

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Step:
    """One command of an experiment, run in the current folder."""

    title: str
    words: tuple[str, ...]
    """The words after `python`: `-m megatron_probsft.commands.evaluate --model …`."""
    done: Path | None
    """A file that exists once the command has finished, and not before; None means that it always runs."""
    record: Path
    """The file that keeps the words of the command that made `done`."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """Return the command as a person types it in the current folder."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, "python", shlex.join(self.words)])


def run_steps(steps: Sequence[Step], console: Console) -> None:
    """Run and print what is not done, in order. Each command continues what it left half done.

    A signal that ends this process ends the command that it runs, too.

    Raises:
        UserError: a command failed, or a finished one had other settings than now.
    """
    check_records(steps)
    started = time.perf_counter()
    for number, step in enumerate(steps, start=1):
        minutes, seconds = divmod(int(time.perf_counter() - started), 60)
        console.rule(f"[bold]{minutes}:{seconds:02d}  {number}/{len(steps)}  {step.title}", align="left")
        if step.done is not None and step.done.exists():
            _print(console, f"done before: {shown_path(step.done)}")
            continue
        _print(console, f"$ {step.shown()}")
        write_record(step.record, step.words)
        code = _call(step)
        if code:
            raise UserError(
                f"{step.title}: exit status {code}, see the lines above; the same command continues from here"
            )
        if step.done is not None and not step.done.exists():
            raise UserError(f"{step.title}: stopped before its end; the same command continues from here")


def check_records(steps: Sequence[Step]) -> None:
    """Raise UserError where what is done was made by another command than would make it now."""
    for step in steps:
        if step.done is not None and step.done.exists():
            check_record(step.record, step.done, step.words)


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False, style="dim")


def _call(step: Step) -> int:
    """Run the command to its end and pass on the signals that ask this process to end."""
    process = subprocess.Popen(
        [sys.executable, *step.words],
        env=os.environ | step.environment,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )

    def pass_on(number: int, _: Any) -> None:
        process.send_signal(number)
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    except SystemExit:
        process.wait()  # it may save what it has
        raise
    except KeyboardInterrupt:  # the terminal sent it to the command as well
        process.wait()
        raise UserError(f"{step.title}: interrupted; the same command continues from here") from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent is killed, too: nobody else would end a training run."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)
