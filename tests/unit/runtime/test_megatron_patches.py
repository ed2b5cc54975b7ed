"""Canaries: a patch without which nothing goes wrong any more is to be taken out.

Each fault of tests/support/patch_faults.py is shown without its patch, and is gone with it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_probsft.runtime import megatron_patches

ROOT = Path(__file__).parents[3]
WITHOUT = {
    # fault, what its traceback tells without the patch
    "cuda_functions": "device=torch.cuda.current_device()",
    "cuda_factories": 'device="cuda"',
    "rng_tracker": "_get_cuda_rng_state",
    "tensor_type_names": "torch.cuda.FloatTensor",
    "token_dispatcher": '== "numpy"',
    "uneven_collectives": "== [0, 0]",
    "saving_before_the_first_step": "assert len(steps) == 1",
    "nonfinite_gradients": "== (False, None, None)",
    "weight_gradient_fusion": "fused_weight_gradient_mlp_cuda module is not found",
    "gradient_norm": "the host reads each gradient's norm",
    "results_queue": "a process manager is started",
}
NO_FAULT_OF_ITS_OWN = {"__init__", "apply", "compile_decorators", "torch_adam"}

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="most patches are for machines without a GPU"
)


def _run(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads(_run("-m", "tests.support.patch_faults"))


@pytest.mark.parametrize("fault", WITHOUT)
def test_the_fault_is_there_without_the_patch_only(fault: str, found: dict[str, Any]) -> None:
    without, patched = found[fault]
    assert without is not None, "upstream no longer needs the patch"
    assert WITHOUT[fault] in without
    assert patched is None, patched


def test_every_replaced_function_of_cuda_is_called(found: dict[str, Any]) -> None:
    assert found["uncalled functions"] == []
    assert found["modules without the literal"] == []


def test_importing_megatron_imports_inductor_without_the_patch_only(found: dict[str, Any]) -> None:
    assert found["imports inductor"]
    program = (
        "import sys, megatron_probsft.runtime.imports.fast_imports; print('torch._inductor' in sys.modules)"
    )
    assert _run("-c", program).split() == ["False"]


FILES = {file.stem: file for file in Path(megatron_patches.__path__[0]).rglob("*.py")}


def test_every_patch_has_a_canary() -> None:
    assert FILES.keys() - NO_FAULT_OF_ITS_OWN <= WITHOUT.keys()


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"__init__", "apply"}))
def test_a_patch_says_what_it_is_and_is_for_the_installed_version(name: str) -> None:
    text = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
    parts = dict(line.split(": ", 1) for line in text.splitlines() if re.match(r"[A-Z][a-z]+: ", line))
    assert list(parts) == ["What", "Why", "Upstream", "Versions"]
    assert f"Megatron-Core {version('megatron-core')}" in parts["Versions"]


def test_a_name_that_is_gone_is_told() -> None:
    with pytest.raises(AssertionError, match=r"torch.cuda.nothing is gone: see runtime/megatron_patches"):
        megatron_patches.replace(torch.cuda, "nothing", None)
