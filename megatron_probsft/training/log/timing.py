"""The wall time of a run, by its parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from megatron_probsft.runtime.processes.heartbeat import progress

PARTS = ("data", "forward_backward", "optimizer", "validation", "checkpoint", "other")


class Phases:
    """Measures wall time by part of the run, by the host's clock: nothing waits for the device.

    On a GPU a part ends where the host learns a number from it: forward_backward with the loss and the
    gradient's norm, so that optimizer is the launch of the update, whose kernels end in `other` or with the
    next step.
    """

    def __init__(self) -> None:
        self._seconds = _no_time()
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside as `part`."""
        started = time.perf_counter()
        progress(part)
        yield
        progress("computing")
        self.add({part: time.perf_counter() - started})

    def add(self, seconds: dict[str, float]) -> None:
        """Count what was timed elsewhere, by part."""
        for part, spent in seconds.items():
            self._seconds[part] += spent

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call, by part (all of PARTS); their sum is the wall time."""
        now = time.perf_counter()
        wall, self._since = now - self._since, now
        seconds, self._seconds = self._seconds, _no_time()
        seconds["other"] = wall - sum(seconds.values())
        return seconds


def _no_time() -> dict[str, float]:
    return dict.fromkeys(PARTS, 0.0)
