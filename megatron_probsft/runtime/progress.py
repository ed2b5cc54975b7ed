"""Long work shows how far it is: a bar with its rate and the time left, or a line now and then in a file."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

from tqdm import tqdm as tqdm  # for others too: with the lock below

_SECONDS_BETWEEN_LINES = 10


def _own_lock() -> None:
    """Lock bars between the threads of one process only.

    tqdm's default lock is shared with forked processes as well: one that is killed while it holds the lock
    would stop every bar that the others ever open.
    """
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)


class ByteProgress:
    """Shows how many bytes of `total` are done: enter it, then `add(count)`, from any thread."""

    def __init__(self, total: int, task: str) -> None:
        self._total, self._task = total, task
        self._bar = tqdm(
            total=total, desc=task, unit="B", unit_scale=True, disable=None, leave=False, smoothing=0
        )
        self._lock = threading.Lock()
        self._done = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count so many more bytes as done."""
        with self._lock:
            self._done += count
            self._bar.update(count)
            now = time.monotonic()
            if self._bar.disable and now - self._said > _SECONDS_BETWEEN_LINES:
                self._said = now
                rate = self._done / (now - self._started)
                left = (self._total - self._done) / rate
                print(
                    f"{self._task}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB | "
                    f"{rate / 1e9:.2f} GB/s | {left:.0f} s left",
                    flush=True,
                )
