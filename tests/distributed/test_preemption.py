"""A signal or the clock ends a run after a step, on all ranks; resumed, it goes on as if nothing was."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint
from megatron_probsft.runtime import distributed
from megatron_probsft.training import loop, preemption
from megatron_probsft.training.preemption import StopRequests
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _signal_when(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: signal.Signals, rank: int
) -> None:
    """Let one rank signal itself at the start of the n-th call of loop's function `name`."""
    original = getattr(loop, name)
    calls = []

    def called(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == call and distributed.rank() == rank:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(loop, name, called)


LAYOUTS = [{}, {"pipeline_model_parallel_size": 2}, {"tensor_model_parallel_size": 2}]
SIGNALS = list(itertools.product(LAYOUTS, [signal.SIGTERM, signal.SIGUSR1]))


@pytest.mark.parametrize(("layout", "number"), rows(SIGNALS, fast=SIGNALS[:1], rare=SIGNALS[1:5:2]))
def test_a_signal_to_one_rank_stops_all_after_the_step(
    layout: dict, number: signal.Signals, tiny_llama: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    folder, settings = tmp_path / "run", {"train_iters": 4, "async_save": True, **layout}
    whole = train(2, config_for(tmp_path / "whole", tiny_llama, data, **settings))
    with monkeypatch.context() as patch:
        _signal_when(patch, "train_step", 2, number, rank=1)
        train(2, config_for(folder, tiny_llama, data, save_optim=True, **settings))
    assert f"stopped at step 2 by {number.name}; continue with --load {folder}" in capfd.readouterr().out
    assert [record["iteration"] for record in records(folder)] == [1, 2]
    assert find_checkpoint(folder)[1] == 2
    train(2, config_for(folder, None, data, load=str(folder), save_optim=True, **settings))
    assert [record["loss"] for record in records(folder)] == [record["loss"] for record in whole]


def test_a_validation_pass_is_cut_short(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than the grace before the kill. Its place is taken by the next one."""
    settings = {"valid_data": [str(data)], "eval_interval": 1}
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        _signal_when(patch, "validate", 2, signal.SIGTERM, rank=0)
        train(2, config_for(folder, tiny_llama, data, save_optim=True, **settings))
    assert [record["iteration"] for record in records(folder, "train")] == [1]
    assert [record["iteration"] for record in records(folder, "validation")] == [0]
    train(2, config_for(folder, None, data, load=str(folder), save_optim=True, **settings))
    assert [record["iteration"] for record in records(folder, "validation")] == [0, 2, 3]


def test_the_time_is_up(tiny_llama: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    train(2, config_for(folder, tiny_llama, data, exit_duration_in_mins=1e-4))
    assert find_checkpoint(folder)[1] == 1
    assert "stopped at step 1 by --exit-duration-in-mins" in capfd.readouterr().out
    train(2, config_for(tmp_path / "enough", tiny_llama, data, exit_duration_in_mins=10.0))
    assert find_checkpoint(tmp_path / "enough")[1] == 3


@pytest.mark.parametrize("torchrun", [False, True])
def test_time_counts_from_the_start_of_the_process(torchrun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports, tokenizing and loading take of the machine's time too; so do torchrun's earlier starts."""
    process = psutil.Process()
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        process = psutil.Process(os.getppid())
    monkeypatch.setattr(preemption.distributed, "largest", lambda number: number)
    ran = (time.time() - process.create_time()) / 60
    assert StopRequests(ran - 0.01).reason() == "--exit-duration-in-mins"
    assert StopRequests(ran + 10).reason() is None


def test_signals_are_as_before_after_the_run(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with StopRequests(None):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
