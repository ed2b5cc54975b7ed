"""liger-kernel's rotation and SwiGLU against torch, by Triton's interpreter on the CPU; where installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, torch
from megatron_probsft.models import fused_kernels, rotary
fused_kernels.has_gpu = lambda: True
fused = fused_kernels.liger_rotate()
query, key = (torch.randn(6, heads, 16, requires_grad=True) for heads in (3, 1))
given = query.detach().clone(), key.detach().clone()
angles = torch.randn(6, 8).repeat(1, 2)
tables = angles.cos(), angles.sin()
pairs = []
outputs = fused(query, key, *tables)
expected = [rotary._rotate(each, *(table[:, None] for table in tables)) for each in (query, key)]
pairs += zip(outputs, expected)
pairs += zip(given, (query, key))  # not overwritten
upstream = [torch.randn_like(each) for each in outputs]
theirs = torch.autograd.grad(expected, (query, key), [each.clone() for each in upstream])
pairs += zip(torch.autograd.grad(outputs, (query, key), upstream), theirs)

fused_kernels.fuse_swiglu()
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
both = torch.randn(5, 1, 24, requires_grad=True)
gate, up = both.chunk(2, -1)
output, expected = bias_swiglu_impl(both, None), torch.nn.functional.silu(gate) * up
upstream = torch.randn_like(output)
pairs.append((output, expected))
pairs.append(tuple(torch.autograd.grad(each, both, upstream)[0] for each in (output, expected)))
print(json.dumps([float((one - other).abs().max()) for one, other in pairs]))
"""


@pytest.mark.size("test")
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_they_compute_what_torch_does() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) == 8
    assert max(differences) < 1e-6
