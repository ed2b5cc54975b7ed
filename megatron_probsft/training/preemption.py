"""Requests to stop before the end: a signal or the clock, agreed on by all ranks after each step."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import psutil

from megatron_probsft.runtime import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what Slurm and Kubernetes send before they take the machine


class StopRequests:
    """Catches SIGTERM and SIGUSR1 while it is entered, and knows when the time is up.

    exit_duration_in_mins: from the start of this process on, imports and tokenizing included, as a cluster
        counts, or of the torchrun that started it and may have restarted it; None: no limit.
    """

    def __init__(self, exit_duration_in_mins: float | None) -> None:
        self._deadline = None
        if exit_duration_in_mins is not None:
            self._deadline = _started() + 60 * exit_duration_in_mins
        self._received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequests:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reason(self) -> str | None:
        """Return why to stop after this step, the same on every rank; None to go on.

        Collectives: one all-reduce of one integer over the world.
        """
        late = self._deadline is not None and time.time() >= self._deadline
        number = distributed.largest(max(self._received, int(late)))
        if number == 0:
            return None
        return "--exit-duration-in-mins" if number == 1 else signal.Signals(number).name

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._received = number


def _started() -> float:
    process = psutil.Process()
    agent = process.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return (agent or process).create_time()
