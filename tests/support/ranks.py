"""Run a function on several forked ranks after one import of torch and Megatron-Core."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError

_GRACE = 10.0
"""Seconds in which the other ranks end by themselves once one has failed."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a fresh gloo world; its results in rank order.

    The function initialises Megatron's groups itself (`distributed.initialize`). What it raises is raised
    here, a UserError as itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks: Any = mp.start_processes(  # type: ignore[attr-defined]
            _rank_main,
            (world_size, free_port(), folder, function, args),
            nprocs=world_size,
            join=False,
            start_method="fork",
        )
        while not ranks.join(timeout=0.2, grace_period=_GRACE):
            if any((Path(folder) / f"{rank}.failed").exists() for rank in range(world_size)):
                ranks.join(timeout=_GRACE)
                for process in ranks.processes:  # those that wait for the one that failed
                    process.kill()
                break
        files = [Path(folder) / str(rank) for rank in range(world_size)]
        outcomes = [pickle.loads(file.read_bytes()) for file in files if file.exists()]
    for kind, value in outcomes:
        if kind == "user error":
            raise UserError(value)
        if kind == "error":
            raise AssertionError(value)
    return [value for _, value in outcomes]


def _rank_main(
    rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], args: tuple
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        outcome = ("ok", function(*args))
    except UserError as error:
        outcome = ("user error", str(error))
    except BaseException:
        outcome = ("error", traceback.format_exc())
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(outcome))
    if outcome[0] != "ok":
        (Path(folder) / f"{rank}.failed").touch()
        os._exit(0)  # the other ranks may wait for this one: let the parent read why
    distributed.shutdown()


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
