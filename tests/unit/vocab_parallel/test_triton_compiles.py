"""What the GPU will run, seen without one: both kernels compiled for Hopper, and their instructions."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

_COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from megatron_probsft.vocab_parallel import triton_kernels

kernel = getattr(triton_kernels, sys.argv[1])
constants = json.loads(sys.argv[2]) | {"column_stride": 1, "BLOCK": 8192}
types = {"logits": "*bf16", "labels": "*i64"}
types |= dict.fromkeys(("columns", "width", "blocks", "row_stride"), "i32")
signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
divisible = {
    (i,): [["tt.divisibility", 16]]
    for i, n in enumerate(kernel.arg_names) if n in ("logits", "row_stride", "width")
}
source = triton.compiler.ASTSource(kernel, signature, constants, divisible)
compiled = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": triton_kernels.WARPS})
print(compiled.asm["ptx"])
"""


def _ptx(kernel: str, **constants: int) -> str:
    command = [sys.executable, "-c", _COMPILE, kernel, json.dumps(constants)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("statistics", [0, 3])
def test_statistics_kernel(statistics: int) -> None:
    slots = dict(
        zip(("ENTROPY", "COLLISION", "CORRECT"), (3, 4, 5) if statistics else (0, 0, 0), strict=True)
    )
    ptx = _ptx("_statistics_kernel", FIELDS=3 + statistics, **slots)
    assert "ld.global.v4.b32" in ptx  # 16 bytes at a time
    # 32 elements per thread: one exponential each, and one to rescale the row's sums.
    assert len(re.findall(r"ex2\.approx", ptx)) == 33
    assert "ld.local" not in ptx


def test_gradient_kernel() -> None:
    ptx = _ptx("_gradient_kernel")
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    assert "cvt.rn.bf16" in ptx  # rounds, where the interpreter cuts off
    assert len(re.findall(r"ex2\.approx", ptx)) == 32
    assert "ld.local" not in ptx
