"""A few kills of a real torchrun job; `python -m tests.support.fault_injection` does many."""

from __future__ import annotations

from pathlib import Path

from tests.support.fault_injection import run_all


def test_killed_in_a_step_and_in_the_writing_of_checkpoints(tmp_path: Path) -> None:
    outcome = run_all(tmp_path, 3, "KILL", async_save=True, change_layout=False)
    assert outcome["difference"] == 0.0
    assert outcome["half-written checkpoint left"] >= 1


def test_terminated_and_resumed_on_another_layout(tmp_path: Path) -> None:
    outcome = run_all(tmp_path, 2, "TERM", async_save=False, change_layout=True)
    assert 0.0 < outcome["difference"] <= 1e-5
