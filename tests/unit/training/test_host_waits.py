"""A training step on CUDA without Transformer Engine: where the host waits for the device, and nowhere else.

The steps run on fake CUDA tensors in a process of their own (tests/support/pretended_gpu): forward pass,
backward pass, head, objective, reduction, optimizer. A CPU tensor that meets a CUDA tensor is an error there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pretended_gpu.training_step import CASES, NOTICED
from tests.support.sizes import rows

ROOT = Path(__file__).parents[3]
NORM = "read megatron/core/optimizer/clip_grads.py:get_grad_norm_fp32"
SUMS = "wait megatron_probsft/runtime/device.py:tolist"
# What a step can't do without, and how often: the norm that decides on skipping it, and the loss's sums,
# which left before it and are there when it is.
ONCE_A_STEP = {NORM: 1, SUMS: 1}
# Experts' tokens are sent to their ranks: the host must know how many, in 4 layers and 2 micro-batches,
# and again where layers are recomputed. The norm of experts' gradients is over other ranks.
EXPERTS = "wait megatron/core/transformer/moe/token_dispatcher.py:_maybe_dtoh_and_synchronize"
MORE = {"experts": {NORM: 2, EXPERTS: 8}, "experts, full recompute": {NORM: 2, EXPERTS: 16}}
RARE = ["CP 2", "full recompute", "selective recompute", "float32", "experts, full recompute"]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is pretended")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The waits of each case that runs."""
    here = [item for item in request.session.items if item.path == request.path]
    calls: list[Any] = [item for item in here if hasattr(item, "callspec")]
    program = ["-m", "tests.support.pretended_gpu.training_step", "noticed"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *program, *(call.callspec.params["case"] for call in calls)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", rows(CASES, fast=[], rare=RARE))
def test_the_host_waits_for_nothing_else(case: str, found: dict[str, Any]) -> None:
    assert found[case] == ONCE_A_STEP | MORE.get(case, {})


@pytest.mark.size("test")
def test_what_would_wait_is_noticed(found: dict[str, Any]) -> None:
    assert found["noticed"] == NOTICED
