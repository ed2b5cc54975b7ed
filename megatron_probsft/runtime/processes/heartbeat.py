"""Each process shows in the store that it lives and where it is; all end when one has been silent too long.

A thread of each process writes a line every few seconds; rank 0's reads them all and tells the others. So a
process that was stopped, or whose machine is gone, ends the run with its name, on NCCL and gloo alike, where
otherwise the collective that waits for it ends without one, or never. A process that computes, writes or
waits keeps its thread, however long it takes. A step costs nothing: the main thread only sets variables.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from megatron_probsft.runtime.processes.beats import Beat, Watch
from megatron_probsft.runtime.processes.launch import hosts_store, leave_for_torchrun

_current: Heartbeat | None = None
_DOUBT = 60.0  # seconds: who is told to stop waits so long for a suspect, in which a pause may end
_LOOKS = 1.0  # seconds; who waits in the store looks into it every half a second


class Heartbeat:
    """The threads that write this process's line and learn of silent ones. One for each process."""

    def __init__(self, store: Any, rank: int, world_size: int, seconds: float) -> None:
        """store: shared by the processes of this start alone. seconds: the time-out of a collective."""
        self._store, self._rank = store.clone(), rank  # its own connection: others wait in theirs
        self._interval = min(5.0, seconds / 10)
        # Before a collective of the main thread times out, which would not say for whom it waited.
        self._limit = seconds - 3 * self._interval
        self._watch = Watch(range(world_size) if rank == 0 else [0], 3 * self._interval, self._limit)
        self._host, self._beats, self._moves = socket.gethostname(), 0, 0
        self._step, self._part, self._patience = 0, "starting", 0
        self._told, self._asked = "", False
        self._doubt = math.inf, 0  # since when, and at which of its moves, this process waits for a suspect
        self._over = threading.Event()
        self._signals, self._wakeup = os.pipe()
        self._reached = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True) for work in (self._run, self._guard)
        ]

    def start(self) -> None:
        """Begin; every process calls this before one of them may wait long for another."""
        if self._rank == 0:
            self._store.set("heartbeat/verdict", "")
            self._store.set("heartbeat/suspects", "")
        self._beat()
        os.set_blocking(self._signals, False)
        os.set_blocking(self._wakeup, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        atexit.register(self.stop)  # a thread that is still in the store would end the interpreter badly
        for thread in self._threads:
            thread.start()

    def stop(self, *, ended: bool = False) -> None:
        """End; the others see that this process has ended well, if it has: at exit it may have crashed."""
        atexit.unregister(self.stop)
        self._over.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        for thread in self._threads:
            thread.join(self._interval)
        if any(thread.is_alive() for thread in self._threads):
            return
        os.close(self._signals), os.close(self._wakeup)
        with contextlib.suppress(RuntimeError):  # the store may have ended with rank 0
            if ended:
                self._beat(ended=True)

    def move(self, part: str | None = None, step: int | None = None) -> None:
        """Note where the main thread is."""
        self._moves += 1
        self._step = self._step if step is None else step
        self._part = self._part if part is None else part

    @contextlib.contextmanager
    def patience(self, part: str) -> Iterator[None]:
        """Note that the main thread, inside, may take however long it takes."""
        before = self._part
        self.move(part)
        self._patience += 1
        try:
            yield
        finally:
            self._patience -= 1
            self.move(before)

    def known(self) -> str:
        """Return what is known of silent or late processes now."""
        return self._told

    def note_mistake(self) -> None:
        """Note that rank 0 has told a mistake, and let the others learn of it while its store is there."""
        with contextlib.suppress(RuntimeError):
            self._store.set("heartbeat/mistake", "")
        if hosts_store():
            time.sleep(_LOOKS)

    def mistake_noted(self) -> bool:
        """Return whether rank 0 has told a mistake, or has ended, and its store with it."""
        try:
            return self._store.check(["heartbeat/mistake"])
        except RuntimeError:
            return True

    def _beat(self, *, ended: bool = False) -> None:
        self._beats += 1
        where = f"step {self._step}, {self._part}" if self._step else self._part
        beat = Beat(self._beats, self._moves, where, self._host, self._patience > 0, ended)
        self._store.set(f"heartbeat/{self._rank}", beat.to_text())

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self._asked = self._asked or self._was_asked_to_stop()
            try:
                self._beat()
                self._look()
            except RuntimeError:  # a connection that broke once does not come back: `_guard` ends the process
                return
            self._reached = time.monotonic()

    def _guard(self) -> None:
        """End the process if the store is out of reach: then the other thread may wait there for ever."""
        looked = time.monotonic()
        while not self._over.wait(self._interval):
            now = time.monotonic()
            if now - looked > 3 * self._interval:  # this process was stopped itself, and goes on
                self._reached = now
            looked = now
            if now - self._reached > self._limit:
                self._end(
                    f"rank {self._rank} on {self._host} has not reached the store of this run for "
                    f"{now - self._reached:.0f} s: has rank 0 stopped, or its machine, or the network to it?",
                    reachable=False,
                )

    def _look(self) -> None:
        """Read the beats that this process watches; end the process if one of the others is gone."""
        watched = self._watch.ranks
        keys = ["heartbeat/verdict", "heartbeat/suspects", *(f"heartbeat/{rank}" for rank in watched)]
        verdict, suspects, *beats = (value.decode() for value in self._store.multi_get(keys))
        now = time.monotonic()
        self._watch.see({rank: Beat.of(text) for rank, text in zip(watched, beats, strict=True)}, now)
        found, silent = self._watch.suspects(now), self._watch.silent(now)
        if self._rank == 0:
            if found != suspects:
                self._store.set("heartbeat/suspects", found)
            if silent:
                self._store.set("heartbeat/verdict", silent)
        stalled = self._watch.stalled(now) if self._rank == 0 else ""
        if stalled and not self._told:  # once; the collective's own time-out ends the run
            _say(stalled)
        self._told = silent or verdict or found or suspects or stalled
        if silent or verdict:
            self._end(silent or verdict)
        if self._asked and self._waits_in_vain(bool(found or suspects), now):
            self._end(f"told to stop while {found or suspects}: nothing can be saved without it")

    def _waits_in_vain(self, suspicion: bool, now: float) -> bool:
        """Tell whether a suspicion has lasted, while the main thread has done nothing, as a save would."""
        if not suspicion or self._patience or self._doubt[1] != self._moves:
            self._doubt = math.inf, self._moves
        if suspicion:
            self._doubt = min(self._doubt[0], now), self._moves
        return now - self._doubt[0] > min(_DOUBT, self._limit / 4)

    def _was_asked_to_stop(self) -> bool:
        """Tell whether SIGTERM or SIGUSR1 came, also while the main thread waits in a collective."""
        with contextlib.suppress(BlockingIOError):
            return any(number in (signal.SIGTERM, signal.SIGUSR1) for number in os.read(self._signals, 64))
        return False

    def _end(self, reason: str, *, reachable: bool = True) -> None:
        """End the process at once: its main thread may wait for ever. One of all that can says why."""
        first = True
        with contextlib.suppress(RuntimeError):
            first = not reachable or self._store.add("heartbeat/told", 1) == 1
        if first:
            _say(f"error: {reason}")
        leave_for_torchrun(f"error: {reason}")
        if self._rank == 0:
            self._over.wait(2 * self._interval)  # the store may be in this process: let the others read it
        os._exit(1)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # nobody reads standard error any more
        print(text, file=sys.stderr, flush=True)


def start_heartbeat(store: Any, rank: int, world_size: int, seconds: float) -> None:
    """Begin to show that this process lives, and to look after the others. Every process calls it.

    A process that has been silent for `seconds` less three beats (of `seconds` ÷ 10, at most 5 s) ends all.
    """
    global _current
    _current = Heartbeat(store, rank, world_size, seconds)
    _current.start()


def stop_heartbeat() -> None:
    """End what `start_heartbeat` began; nothing where it did not."""
    global _current
    if _current is not None:
        _current.stop(ended=True)
        _current = None


def progress(part: str | None = None, step: int | None = None) -> None:
    """Note where the main thread is, for messages about a run that hangs; it only sets variables."""
    if _current is not None:
        _current.move(part, step)


@contextlib.contextmanager
def patience(part: str) -> Iterator[None]:
    """Note that the main thread, inside, may take however long it takes, with no message about it."""
    with contextlib.nullcontext() if _current is None else _current.patience(part):
        yield


def known_of_others() -> str:
    """Return what is known of processes that are silent or late; empty where nothing is."""
    return "" if _current is None else _current.known()


def note_told() -> None:
    """Note for the other ranks that rank 0 has told a mistake; nothing before they share a store."""
    if _current is not None:
        _current.note_mistake()


def first_has_told() -> bool:
    """Return whether rank 0 has told a mistake; False before the processes share a store."""
    return _current is not None and _current.mistake_noted()
