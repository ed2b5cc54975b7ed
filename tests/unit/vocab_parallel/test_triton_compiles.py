"""What the GPU will run, seen without one: the kernels compiled for three GPUs, and their instructions."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.support.sizes import rows

_COMPILE = """
import json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from megatron_probsft.vocab_parallel import triton_kernels

capability, kernels = json.loads(sys.argv[1])
types = {"logits": "*bf16", "labels": "*i64"}
types |= dict.fromkeys(("columns", "width", "blocks", "row_stride"), "i32")
found = {}
for row, (name, constants) in kernels.items():
    kernel = getattr(triton_kernels, name)
    constants |= {"column_stride": 1, "BLOCK": triton_kernels.MAX_BLOCK}
    signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names) if n in ("logits", "row_stride", "width")
    }
    source = triton.compiler.ASTSource(kernel, signature, constants, divisible)
    target = GPUTarget("cuda", capability, 32)
    ptx = triton.compile(source, target, {"num_warps": triton_kernels.WARPS}).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        architecture = re.search(r"\\.target (\\w+)", ptx)[1]
        command = [get_ptxas(capability).path, "-v", "-arch=" + architecture, file.name, "-o", "/dev/null"]
        assembled = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found[row] = [ptx, assembled]
print(json.dumps(found))
"""


def _slots(*slots: int) -> dict[str, int]:
    names = ("ENTROPY", "COLLISION", "CORRECT")
    return dict(zip(names, slots or (0, 0, 0), strict=True)) | {"FIELDS": 3 + len(slots)}


KERNELS = {
    "statistics": ("_statistics_kernel", _slots()),
    "all statistics": ("_statistics_kernel", _slots(3, 4, 5)),
    "gradient": ("_gradient_kernel", {}),
}
ELEMENTS = 16
"""A thread's share of a block."""


class Compiled(NamedTuple):
    ptx: str
    registers: int
    spilled_bytes: int


@functools.cache
def _compiled(capability: int) -> dict[str, Compiled]:
    """All kernels as Triton and its assembler make them for GPUs of a compute capability, e.g. 90."""
    command = [sys.executable, "-c", _COMPILE, json.dumps([capability, KERNELS])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def number(pattern: str, text: str) -> int:
        match = re.search(pattern, text)
        assert match, text
        return int(match[1])

    return {
        kernel: Compiled(
            ptx, number(r"Used (\d+) registers", said), number(r"(\d+) bytes spill stores", said)
        )
        for kernel, (ptx, said) in found.items()
    }


@pytest.mark.parametrize("kernel", ["statistics", "all statistics"])
def test_statistics_kernel(kernel: str) -> None:
    ptx = _compiled(90)[kernel].ptx
    assert "ld.global.v4.b32" in ptx  # 16 bytes at a time
    # One exponential for each element of a thread, and one to rescale the row's sums.
    assert len(re.findall(r"ex2\.approx", ptx)) == ELEMENTS + 1
    assert "ld.local" not in ptx


def test_gradient_kernel() -> None:
    ptx = _compiled(90)["gradient"].ptx
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    assert "cvt.rn.bf16" in ptx  # rounds, where the interpreter cuts off
    assert len(re.findall(r"ex2\.approx", ptx)) == ELEMENTS
    assert "ld.local" not in ptx


@pytest.mark.parametrize("capability", rows([80, 90, 100], fast=[90], rare=[80]), ids="sm_{}".format)
@pytest.mark.parametrize("kernel", KERNELS)
def test_registers(kernel: str, capability: int) -> None:
    """64 registers leave at least half of a multiprocessor's threads busy, which hides memory's latency."""
    compiled = _compiled(capability)[kernel]
    assert compiled.registers <= 64
    assert compiled.spilled_bytes == 0
