"""Processes find each other, wait for each other and notice that one is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from megatron_probsft.runtime import distributed, errors
from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.processes.heartbeat import progress
from tests.support.ranks import free_port, run_ranks

FORK = multiprocessing.get_context("fork")
SECONDS = 6.0  # a collective's time-out: silence is too long from 4.2 s on


def _start_on(port: int) -> float:
    """As under torchrun, whose store outlives the processes."""
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    distributed.join_processes()
    total = torch.tensor(float(distributed.rank()))
    dist.all_reduce(total)
    return float(total)


def test_a_restart_meets_nothing_of_the_start_before() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(2):  # with torch's own rendezvous the second one calls the ports of the first
        assert run_ranks(3, _start_on, store.port) == [3.0] * 3


def _join(port: int, rank: int, seconds: float) -> None:
    os.environ["MASTER_PORT"] = str(port)
    if distributed.rank() == rank:
        distributed.join_processes(seconds / 60)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "2 of 3 processes did not come: rank 1, 2; are they all started"),
        (1, "rank 1 reached nobody at MASTER_ADDR:MASTER_PORT 127.0.0.1:"),
    ],
)
@pytest.mark.size("test")
def test_who_does_not_come_is_named(rank: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_ranks(3, _join, free_port(), rank, 2.0)


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"MASTER_PORT .* is taken by another program"):
            run_ranks(2, _join, taken.getsockname()[1], 0, 2.0)


def test_groups_have_the_time_limit_of_the_run() -> None:
    assert run_ranks(2, _time_limits) == [{timedelta(minutes=7)}] * 2


def _time_limits() -> set[timedelta]:
    distributed.join_processes(7)
    distributed.initialize(2)
    groups = (dist.group.WORLD, distributed.tensor_group(), distributed.data_group())
    return {group._get_backend(torch.device("cpu")).options._timeout for group in groups}  # type: ignore


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "has_gpu", lambda: True)
    monkeypatch.setattr(distributed, "gpu_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="LOCAL_RANK=2 has no GPU: this process sees 2"):
        distributed.join_processes()


def _outcomes() -> list[Any]:
    """What on_first_rank gives and raises on this rank."""
    distributed.join_processes()
    found: list[Any] = [distributed.on_first_rank(lambda: {"rank": distributed.rank()}, "thinking")]
    for error in (UserError("wrong data"), OSError(28, "No space left", "/disk"), ZeroDivisionError("a bug")):

        def fail(error: Exception = error) -> None:
            raise error

        try:
            distributed.on_first_rank(fail, "failing")
        except (UserError, OSError, RuntimeError, ZeroDivisionError) as caught:
            found.append(f"{type(caught).__name__}: {caught}")
    return found


def test_what_the_first_rank_does_comes_to_all() -> None:
    same = [{"rank": 0}, "UserError: wrong data", "OSError: [Errno 28] No space left: '/disk'"]
    first, *others = run_ranks(3, _outcomes)
    assert first == [*same, "ZeroDivisionError: a bug"]
    assert others == [[*same, "RuntimeError: rank 0 failed in failing: ZeroDivisionError: a bug"]] * 2


def _first_works_last() -> None:
    distributed.join_processes()
    distributed.on_first_rank(lambda: time.sleep(0.8), "sleeping")


def test_the_first_rank_leaves_last() -> None:
    """It hosts the store, where the others look every half a second for what it has done."""
    assert run_ranks(3, _first_works_last) == [None] * 3


def _fail_on(rank: int | None) -> int:
    """Rank 0 meets a mistake in what it does for all; or one rank meets its own."""
    try:
        with one_line_errors():
            distributed.join_processes()
            if rank is None:
                distributed.on_first_rank(lambda: _raise("wrong data"), "reading")
            if distributed.rank() == rank:
                _raise("the disk is full")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _raise(message: str) -> None:
    raise UserError(message)


@pytest.mark.parametrize(
    ("rank", "status", "says"),
    [
        (None, [2, 2, 2], "error: wrong data\n"),
        (0, [2, 0, 0], "error: the disk is full\n"),
        (2, [0, 0, 2], "error: rank 2: the disk is full\n"),
    ],
)
def test_a_mistake_is_told_once_without_torchrun(
    rank: int | None, status: list[int], says: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(errors, "_PATIENCE", 0.3)
    assert run_ranks(3, _fail_on, rank) == status
    assert capfd.readouterr().err == says


def _long_work() -> float:
    distributed.join_processes(SECONDS / 60)
    started = time.monotonic()
    distributed.on_first_rank(lambda: time.sleep(SECONDS + 0.5), "sleeping")
    if distributed.rank() == 1:
        time.sleep(0.2)
    distributed.wait_for_all("sleeping")
    dist.barrier()
    return time.monotonic() - started


@pytest.mark.size("test")
def test_work_of_one_rank_may_take_longer_than_a_collective() -> None:
    assert all(SECONDS + 0.6 < seconds < 3 * SECONDS for seconds in run_ranks(2, _long_work))


def _stop_in_step_3() -> None:
    """Rank `STOPPED` stops in its third step, the other waits for it in an all-reduce."""
    stopped, told = int(os.environ["STOPPED"]), os.environ.get("TOLD")
    distributed.join_processes(float(os.environ["SECONDS"]) / 60)
    for step in (1, 2, 3):
        progress("data", step)
        if step == 3:
            time.sleep(float(os.environ["SECONDS"]) / 5)  # the beat has told of it
            if distributed.rank() == stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            if told:
                signal.signal(signal.SIGTERM, lambda *_: None)  # as StopRequests
                signal.raise_signal(signal.SIGTERM)
        progress("computing")
        dist.all_reduce(torch.ones(1))


def _sleep_in_step_3() -> None:
    """Rank 1 lives, but does not come to the all-reduce."""
    distributed.join_processes(SECONDS / 60)
    progress("data", 3)
    if distributed.rank() == 1:
        time.sleep(3 * SECONDS)
    progress("computing")
    dist.all_reduce(torch.ones(1))


def _world(function: Callable[[], None], log: Path, **environment: str) -> Sequence[BaseProcess]:
    """Two ranks, started; what they say goes to `log`."""

    def main(rank: int, port: int) -> None:
        sys.stderr = log.open("a")
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        os.environ.update(place | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"} | environment)
        with one_line_errors():
            function()

    port = free_port()
    ranks = [FORK.Process(target=main, args=(rank, port), daemon=True) for rank in (0, 1)]
    for each in ranks:
        each.start()
    return ranks


@pytest.mark.size("test")
def test_a_rank_that_hangs_ends_the_run_with_its_name(tmp_path: Path) -> None:
    host, seconds = socket.gethostname(), str(SECONDS)
    place, store = f"on {host} (last in step 3, data)", TCPStore("127.0.0.1", 0, is_master=True)
    torchrun = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    cases = {
        # what happens: the ranks, which of them lives on, what it says
        "one": (_world(_stop_in_step_3, tmp_path / "one", STOPPED="1", SECONDS=seconds), 0,
            f"error: rank 1 {place}: no sign of life for "),
        "zero": (_world(_stop_in_step_3, tmp_path / "zero", STOPPED="0", SECONDS=seconds, **torchrun), 1,
            f"error: rank 0 {place}: no sign of life for "),
        "store": (_world(_stop_in_step_3, tmp_path / "store", STOPPED="0", SECONDS=seconds), 1,
            f"error: rank 1 on {host} has not reached the store of this run for "),
        "told": (_world(_stop_in_step_3, tmp_path / "told", STOPPED="1", SECONDS="15", TOLD="yes"), 0,
            f"error: told to stop while rank 1 {place}: no sign of life: nothing can be saved without it"),
        "late": (_world(_sleep_in_step_3, tmp_path / "late"), 0,
            f"behind is rank 1 {place}; others are in step 3, computing"),
    }  # fmt: skip
    try:
        for name, (ranks, alive, says) in cases.items():
            ranks[alive].join(40)
            said = (tmp_path / name).read_text()
            assert ranks[alive].exitcode == 1, (name, said)
            assert says in said, (name, said)
        assert said.count(says) == 2, said  # also as a note of the all-reduce's own error
        assert "Timed out" in said, said
    finally:
        for ranks, *_ in cases.values():
            for each in ranks:
                each.kill()
