"""The variables that a launcher sets are checked before anything expensive."""

from __future__ import annotations

import os

from megatron_probsft.runtime.errors import UserError

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TASKS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
_TORCHRUN = "start the processes with torchrun, which sets all five"


def check_environment() -> None:
    """Compare RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT with each other.

    Without RANK and WORLD_SIZE a process is alone, which is right unless a launcher that sets neither (srun,
    mpirun) has started several.

    Raises:
        UserError: a variable is missing, is no number, or does not go with another.
    """
    given = {name: os.environ[name] for name in _LAUNCHED if os.environ.get(name)}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        _check_alone()
        return
    missing = [name for name in _LAUNCHED if name not in given]
    if missing and given.get("WORLD_SIZE") != "1":
        there = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{there} without {' and '.join(missing)}: {_TORCHRUN}")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not given.get(name, "0").isdecimal():
            raise UserError(f"{name}={given[name]} is not a whole number: {_TORCHRUN}")
    rank, world_size = int(given.get("RANK", "0")), int(given.get("WORLD_SIZE", "1"))
    if rank >= world_size:
        raise UserError(f"RANK={rank} with WORLD_SIZE={world_size}: ranks go from 0 to WORLD_SIZE - 1")
    _check_local(int(given.get("LOCAL_RANK", "0")), rank)
    if not 0 < int(given.get("MASTER_PORT", "1")) < 2**16:
        raise UserError(f"MASTER_PORT={given['MASTER_PORT']} is no port: ports go from 1 to 65535")


def _check_alone() -> None:
    for name, launcher in _TASKS.items():
        tasks = os.environ.get(name, "1")
        if tasks.isdecimal() and int(tasks) > 1:
            raise UserError(
                f"{launcher} has started {tasks} processes that do not know of each other (RANK and "
                f"WORLD_SIZE are not set): let {launcher} start one torchrun on each machine, as "
                "examples/slurm/many_nodes.sbatch does"
            )


def _check_local(local_rank: int, rank: int) -> None:
    local_size = os.environ.get("LOCAL_WORLD_SIZE", "")
    if local_size.isdecimal() and local_rank >= int(local_size):
        raise UserError(f"LOCAL_RANK={local_rank} with LOCAL_WORLD_SIZE={local_size}: {_TORCHRUN}")
    if local_rank > rank:
        raise UserError(f"LOCAL_RANK={local_rank} is above RANK={rank}: {_TORCHRUN}")
