"""Waiting for other processes outside of collectives, which end after a time: however long it takes.

NCCL's and gloo's collectives time out (--distributed-timeout-minutes). So what one process does for all, and
what takes the processes very different times, is waited for in the store. If the one that is waited for dies,
the heartbeat ends the others.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import pickle
import time
from collections.abc import Callable
from typing import Any

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.processes.heartbeat import patience
from megatron_probsft.runtime.processes.launch import hosts_store
from megatron_probsft.runtime.processes.rendezvous import pauses

_MINUTE = 60.0
_FAREWELL = 10.0  # seconds; the others come within half a second of what they wait for last


class Waiting:
    """The processes of one start wait for each other; all call the same methods in the same order."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        """store: shared by the processes of this start alone; used by nobody else while one waits."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._numbers = itertools.count()

    def on_first[T](self, work: Callable[[], T], doing: str) -> T:
        """Do the work on rank 0 and return its outcome everywhere; it is pickled, and should be small.

        Raises:
            UserError, OSError: what the work raised, on every rank.
            RuntimeError: on the other ranks, where the work raised anything else.
        """
        key = f"waiting/{next(self._numbers)}"
        with patience(doing if self._rank == 0 else f"waiting for rank 0 ({doing})"):
            if self._rank == 0:
                return self._lead(work, key)
            self._wait(key, doing)
        kind, value = pickle.loads(base64.b64decode(self._store.get(key)))
        if kind == "done":
            return value
        if kind == "error":
            raise value
        raise RuntimeError(f"rank 0 failed in {doing}: {value}")

    def for_all(self, doing: str) -> None:
        """Return when every process has come here."""
        key = f"waiting/{next(self._numbers)}"
        with patience(f"waiting for the others ({doing})"):
            if self._store.add(key, 1) == self._world_size:
                self._store.set(f"{key}/here", "")
            else:
                self._wait(f"{key}/here", doing)

    def leave(self) -> None:
        """Leave the store for good; the process that hosts it stays, for some seconds, until all have."""
        if not hosts_store():
            with contextlib.suppress(RuntimeError):
                self._store.add("waiting/left", 1)
            return
        deadline = time.monotonic() + _FAREWELL
        for pause in pauses():
            left = self._store.add("waiting/left", 0)
            if left == self._world_size - 1 or time.monotonic() > deadline:
                return
            time.sleep(pause)

    def _lead[T](self, work: Callable[[], T], key: str) -> T:
        outcome: tuple[str, Any] = ("failed", "it was interrupted")
        try:
            result = work()
            outcome = ("done", result)
            return result
        except (UserError, OSError) as error:
            outcome = ("error", error)
            raise
        except Exception as error:
            outcome = ("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self._store.set(key, base64.b64encode(pickle.dumps(outcome)).decode())

    def _wait(self, key: str, doing: str) -> None:
        started = said = time.monotonic()
        for pause in pauses():
            if self._store.check([key]):
                return
            now = time.monotonic()
            if self._rank == 1 and now - said > _MINUTE:  # one of those that wait
                said = now
                print(f"waiting for {(now - started) / 60:.0f} min: {doing}", flush=True)
            time.sleep(pause)
