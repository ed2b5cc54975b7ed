"""What tests' forked ranks do with errors and warnings, and that no test takes a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch.distributed as dist

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.device import gpu_count
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks


def _warn() -> None:
    warnings.warn("said on a rank", stacklevel=1)


def _refuse() -> None:
    raise UserError("refused on a rank")


def test_a_warning_on_a_rank_is_an_error() -> None:
    with pytest.raises(AssertionError, match="UserWarning: said on a rank"):
        run_ranks(1, _warn)


def test_a_users_mistake_on_a_rank_is_raised_here_as_itself() -> None:
    with pytest.raises(UserError, match="refused on a rank"):
        run_ranks(2, _refuse)


def _backend() -> tuple[str, int]:
    distributed.initialize()
    return dist.get_backend(), gpu_count()


def test_ranks_and_programs_see_no_gpu() -> None:
    """On a machine with fewer GPUs than ranks, NCCL would refuse; on one with more, other code would run."""
    assert run_ranks(2, _backend) == [("gloo", 0)] * 2
    seen = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'] == '')"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True).stdout == "True\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
