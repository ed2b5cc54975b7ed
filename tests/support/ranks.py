"""Run a function on several forked ranks after one import of torch and Megatron-Core."""

from __future__ import annotations

import os
import pickle
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


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a fresh gloo world; its results in rank order.

    The function initialises Megatron's groups itself (`distributed.initialize`). What it raises is raised
    here, a UserError as itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(  # type: ignore[attr-defined]
            _rank_main,
            (world_size, free_port(), folder, function, args),
            nprocs=world_size,
            start_method="fork",
        )
        outcomes = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]
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
        os._exit(0)  # the other ranks may wait for this one: let the parent read why
    distributed.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
