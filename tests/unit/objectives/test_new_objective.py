"""A new objective is one file of the package, and nothing else of the package changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_probsft

PACKAGE = Path(megatron_probsft.__file__).parent
TOY = '''
"""A toy for a test."""

import torch

from megatron_probsft.objectives.forms import register
from megatron_probsft.objectives.losses.basic import one_minus_p


@register("Cubed-c", "Cubed-2", lambda c: 0 < c <= 10, keeps=lambda log_p, c: log_p > -c)
def cubed(log_p: torch.Tensor, c: float) -> torch.Tensor:
    """f = c·(1 − p)³ where log p > −c
    s = 3·c·p·(1 − p)² where log p > −c
    Range: 0 < c ≤ 10
    Source: a test
    """
    return torch.where(log_p > -c, c * one_minus_p(log_p) ** 3, torch.zeros_like(log_p))
'''
USE = """
import json
import torch
from megatron_probsft.objectives.registry import get_objective, gradient_weight

cubed = get_objective("Cubed-2")
log_p = torch.tensor([0.5, 0.1]).log()
values = cubed(log_p), gradient_weight(cubed, log_p), cubed.kept(log_p)
print(json.dumps([value.tolist() for value in values]))
"""


def _python(package_parent: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package_parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=package_parent, env=environment, capture_output=True, text=True)


@pytest.mark.size("test")
def test_a_new_objective_is_one_file(tmp_path: Path) -> None:
    package = tmp_path / "megatron_probsft"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "objectives" / "losses" / "toy.py").write_text(TOY)

    used = _python(tmp_path, "-c", USE)
    assert used.returncode == 0, used.stderr
    assert json.loads(used.stdout) == [[0.25, 0], [0.75, 0], [True, False]]

    listed = _python(tmp_path, "-m", "megatron_probsft.objectives", "--output", "all.png")
    assert listed.returncode == 0, listed.stderr
    assert "Cubed-c" in listed.stdout
    assert "0 < c ≤ 10" in listed.stdout
    assert (tmp_path / "all.png").exists()

    refused = _python(tmp_path, "-m", "megatron_probsft.objectives", "Cubed-11")
    assert refused.stderr == "error: objective 'Cubed-11': c = 11 is out of range (0 < c ≤ 10)\n"
