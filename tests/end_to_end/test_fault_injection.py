"""A few kills of a real torchrun job; `python -m tests.support.fault_injection` does many."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.fault_injection import (
    Job,
    another,
    compare,
    run_all,
    strike_under_restarts,
    uninterrupted,
)
from tests.support.sizes import rows

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return uninterrupted(tmp_path_factory.mktemp("whole"), 3, async_save=True)


def test_killed_in_a_step_and_in_the_writing_of_checkpoints(whole: Job, tmp_path: Path) -> None:
    outcome = run_all(whole, tmp_path, 3, "KILL", change_layout=False)
    assert outcome["difference"] == 0.0
    assert outcome["half-written checkpoint left"] >= 1


def test_terminated_and_resumed_on_another_layout(tmp_path: Path) -> None:
    outcome = run_all(uninterrupted(tmp_path, 2, async_save=False), tmp_path, 2, "TERM", change_layout=True)
    assert 0.0 < outcome["difference"] <= 1e-5


@pytest.mark.parametrize("numbers", rows([[KILL], [KILL, STOP]], fast=[], rare=[[KILL, STOP]]))
def test_torchrun_restarts_it_when_a_rank_dies_or_hangs(
    numbers: list[signal.Signals], whole: Job, tmp_path: Path
) -> None:
    job = another(whole, tmp_path / "restarted", "--distributed-timeout-minutes", "0.25")
    strike_under_restarts(job, numbers)
    assert compare(job, whole) == 0.0
