"""A launcher's variables that do not go together are one line each, before anything expensive."""

from __future__ import annotations

import re

import pytest

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.processes.environment import check_environment
from megatron_probsft.runtime.processes.launch import launched_rank

RIGHT = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "LOCAL_WORLD_SIZE")


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None]) -> None:
    for name in (*RIGHT, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        RIGHT,
        RIGHT | {"LOCAL_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "4"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"},  # of the machine, or an earlier shell
    ],
    ids=str,
)
def test_right_ones_pass(variables: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, variables)
    check_environment()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (RIGHT | {"RANK": None}, "MASTER_PORT=29500 without RANK: start the processes with torchrun"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8 without RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE and LOCAL_RANK"),
        (RIGHT | {"LOCAL_RANK": None}, "without LOCAL_RANK"),
        (RIGHT | {"MASTER_ADDR": ""}, "without MASTER_ADDR"),
        (RIGHT | {"RANK": "three"}, "RANK=three is not a whole number"),
        (RIGHT | {"WORLD_SIZE": "-8"}, "WORLD_SIZE=-8 is not a whole number"),
        (RIGHT | {"MASTER_PORT": "auto"}, "MASTER_PORT=auto is not a whole number"),
        (RIGHT | {"RANK": "8"}, "RANK=8 with WORLD_SIZE=8: ranks go from 0"),
        (RIGHT | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 is above RANK=3"),
        (RIGHT | {"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=1 with LOCAL_WORLD_SIZE=1"),
        (RIGHT | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun has started 8 processes that do not know of each other"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 processes"),
    ],
    ids=str,
)
def test_wrong_ones_are_told(
    variables: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, variables)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        check_environment()
    assert "\n" not in str(caught.value)
    launched_rank()  # what tells the mistake asks for it
