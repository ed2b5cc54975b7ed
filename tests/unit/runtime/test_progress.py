"""Progress bars of processes that are killed do not stop those of others."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import tqdm

from megatron_probsft.runtime.progress import ByteProgress

FORK = multiprocessing.get_context("fork")


def _killed_with_the_lock() -> None:
    tqdm.tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def _draws() -> None:
    with ByteProgress(10, "copying") as progress:
        progress.add(10)


@pytest.mark.parametrize("held", [False, True])
def test_a_killed_process_does_not_keep_the_lock_of_bars(held: bool) -> None:
    """Neither does a thread that draws while its process forks."""
    _draws()
    killed = FORK.Process(target=_killed_with_the_lock, daemon=True)
    killed.start()
    killed.join(20)
    assert killed.exitcode == -signal.SIGKILL
    lock = tqdm.tqdm.get_lock()
    if held:
        lock.acquire()
    draws = FORK.Process(target=_draws, daemon=True)
    draws.start()
    if held:
        lock.release()
    draws.join(20)
    assert draws.exitcode == 0
