"""The processes of one start of a run find each other, and nothing that an earlier start has left."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.processes.launch import hosts_store, launched_rank, launched_world_size

_NAMED = 8  # of the ranks that a message is about


def join_store(seconds: float) -> Store:
    """Return a store that the processes of this start share, empty, as soon as all of them are there.

    torchrun keeps one store over all restarts, and its TORCHELASTIC_RESTART_COUNT may differ from machine to
    machine (pytorch#135712, #167288; seen with torch 2.13: the next start's gloo reads the addresses of
    processes that are dead). So the processes agree on a name of this start, and keep to keys under it.

    Args:
        seconds: so long the store is looked for, and then so long the other processes are waited for.

    Raises:
        UserError: the port is taken, there is no store, or processes are missing, which rank 0 names.
    """
    store = _connect(seconds)
    rank, world_size = launched_rank(), launched_world_size()
    deadline = time.monotonic() + seconds
    name = _lead(store, world_size, deadline) if rank == 0 else _follow(store, rank, deadline)
    return PrefixStore(name, store)


def _connect(seconds: float) -> TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(
            host,
            port,
            is_master=hosts_store(),
            timeout=timedelta(seconds=max(seconds / 2, 1)),  # it tries twice
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(
                f"MASTER_PORT {port} of {host} is taken by another program: choose another, or let torchrun "
                "--standalone choose"
            ) from None
        raise UserError(
            f"rank {launched_rank()} reached nobody at MASTER_ADDR:MASTER_PORT {host}:{port} within "
            f"{seconds:.0f} s: is rank 0's process, or torchrun on its machine, running there, and may "
            "this machine connect to it?"
        ) from None
    store.set_timeout(timedelta(seconds=seconds))
    return store


def _lead(store: Store, world_size: int, deadline: float) -> str:
    """Answer what each process says until all have understood; the name of this start.

    A greeting may be one that an earlier start's process has left: its answer is read by nobody, and the
    process of this start greets anew.
    """
    name, answered = uuid.uuid4().hex, dict[int, bytes]()
    others = range(1, world_size)

    def all_here() -> bool:
        there = [rank for rank in others if store.check([_greeting(rank)])]
        greetings = store.multi_get([_greeting(rank) for rank in there]) if there else []
        for rank, greeting in zip(there, greetings, strict=True):
            if answered.get(rank) != greeting:
                answered[rank] = greeting
                store.set(f"answer/{rank}", f"{greeting.decode()} {name}")
        return not world_size > 1 or store.check([f"{name}/understood/{rank}" for rank in others])

    if not _until(all_here, deadline):
        late = [rank for rank in others if not store.check([f"{name}/understood/{rank}"])]
        more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
        raise UserError(
            f"{len(late)} of {world_size} processes did not come: rank {', '.join(map(str, late[:_NAMED]))}"
            f"{more}; are they all started, with the same MASTER_ADDR and MASTER_PORT?"
        )
    return name


def _follow(store: Store, rank: int, deadline: float) -> str:
    own = uuid.uuid4().hex
    store.set(_greeting(rank), own)
    answer: list[str] = []

    def answered() -> bool:
        if store.check([f"answer/{rank}"]):
            answer[:] = store.get(f"answer/{rank}").decode().split()
        return bool(answer) and answer[0] == own

    if not _until(answered, deadline):
        raise UserError(f"rank {rank} got no answer from rank 0: is it started?")
    store.set(f"{answer[1]}/understood/{rank}", "")
    return answer[1]


def _greeting(rank: int) -> str:
    return f"greeting/{rank}"


def _until(true: Callable[[], bool], deadline: float) -> bool:
    """Ask again and again, and tell whether it became true before the deadline."""
    for pause in pauses():
        if true():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    raise AssertionError("pauses do not end")


def pauses() -> Iterator[float]:
    """Yield the seconds to sleep between looks into a store: short first, half a second later."""
    pause = 0.001
    while True:
        yield pause
        pause = min(1.5 * pause, 0.5)
