"""One command of an experiment, and running a list of them so that finished ones are never run again."""

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

from megatron_probsft.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Step:
    """An ordinary command of this project, run in its folder."""

    title: str
    words: tuple[str, ...]
    """From the Python program on: `tools/evaluate.py --model …` or `-m …`."""
    done: Path | None
    """What exists once the command has finished, and not before; None: it is quick, and always run."""
    record: Path
    """The file that keeps the command, a word per line: what is done was done by it."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """As typed in the project's folder."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, "python", shlex.join(self.words)])


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Command-line words: True and False become --name and --no-name, lists several words, None nothing."""
    words: list[str] = []
    for name, value in flags.items():
        dashed = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{dashed}", *map(shown_path, values)]
    return words


def shown_path(value: Any) -> str:
    """Paths inside the project relative to it, where commands run; all else as text."""
    return str(value).removeprefix(f"{ROOT}/") if isinstance(value, Path) else str(value)


def run_steps(steps: Sequence[Step], console: Console) -> None:
    """Run what is not done, in order, each command printed. The commands take up what they left half done.

    A signal that ends this process ends the command that it runs, too.

    Raises:
        UserError: a command failed; or a finished one's settings were not those of today.
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
        step.record.parent.mkdir(parents=True, exist_ok=True)
        step.record.write_text("".join(f"{word}\n" for word in step.words))
        code = _call(step)
        if code:
            raise UserError(
                f"{step.title}: exit status {code}, see the lines above; the same command continues from here"
            )
        if step.done is not None and not step.done.exists():
            raise UserError(f"{step.title}: stopped before its end; the same command continues from here")


def check_records(steps: Sequence[Step]) -> None:
    """Raises UserError where what is done was made by another command than would make it now."""
    for step in steps:
        if step.done is None or not step.done.exists() or not step.record.exists():
            continue
        before = step.record.read_text().splitlines()
        if before == list(step.words):
            continue
        was, is_now = (
            shlex.join(word for word in words if word not in others)
            for words, others in ((before, step.words), (step.words, before))
        )
        raise UserError(
            f"{shown_path(step.done)} was made with {was or 'less'}, not {is_now or 'that'} "
            f"({shown_path(step.record)}): move its folder away, or choose another --output"
        )


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False, style="dim")


def _call(step: Step) -> int:
    """Run the command to its end and pass on the signals that ask this process to end."""
    process = subprocess.Popen(
        [sys.executable, *step.words],
        cwd=ROOT,
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
    """Ask Linux for SIGTERM when the parent is gone, killed too: nobody else would end a training run."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)
