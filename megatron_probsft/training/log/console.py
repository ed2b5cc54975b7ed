"""The lines that the person watching sees, on a terminal with a progress bar under them."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from typing import TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from megatron_probsft.runtime.processes.heartbeat import progress

T = TypeVar("T")


class Console:
    """Prints lines on a stream, with a bar below them on a terminal; nothing at all unless `active`."""

    def __init__(self, *, active: bool, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._active = active
        self._bars: Progress | None = None
        if active and self._stream.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=RichConsole(file=self._stream),
                auto_refresh=False,  # no thread of its own: checkpoints fork
                transient=True,
            )
            self._bars.start()
            self._steps = self._bars.add_task("training", total=None, text="", visible=False)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if not self._active:
            return
        if self._bars is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print something of rich's, such as a table."""
        if self._bars is not None:
            self._bars.console.print(renderable)
        elif self._active:
            RichConsole(file=self._stream, width=None if self._stream.isatty() else 120).print(renderable)

    def step(self, iteration: int, train_iters: int, text: str) -> None:
        """Move the bar to a step and show `text` beside it."""
        if self._bars is not None:
            self._bars.update(
                self._steps, completed=iteration, total=train_iters, text=text, visible=True, refresh=True
            )

    def progress(self, title: str, items: Iterator[T], total: int) -> Iterator[T]:
        """Pass the items on, with a second bar, or a line with the time left about every 5 s."""
        started = last = time.perf_counter()
        bar = None if self._bars is None else self._bars.add_task(title, total=total, text="")
        try:
            for done, item in enumerate(items):
                progress(title)
                now = time.perf_counter()
                left = eta((now - started) / max(done, 1) * (total - done))
                if self._bars is not None and bar is not None:
                    self._bars.update(bar, completed=done, text=f"ETA {left}" if done else "", refresh=True)
                elif done and now - last > 5:
                    last = now
                    self.say(f"{title}: {done}/{total} | ETA {left}")
                yield item
        finally:  # also where the caller stops early
            if self._bars is not None and bar is not None:
                self._bars.remove_task(bar)
                self._bars.refresh()

    def close(self) -> None:
        """Take the bar away; lines can still be said."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def eta(seconds: float) -> str:
    """Return the time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
