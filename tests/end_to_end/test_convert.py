"""The conversion tool as a user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.sizes import rows
from tests.support.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]


def _convert(direction: str, hf: Path, megatron: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "tools/convert_checkpoint.py",
        direction,
        "--hf",
        str(hf),
        "--megatron",
        str(megatron),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "dtype", rows([torch.float32, torch.bfloat16], fast=[], rare=[torch.float32]), ids=str
)
def test_there_and_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "hf", family="qwen2", tied=False, heads=8, groups=2, dtype=dtype)
    assert _convert("hf-to-megatron", source, tmp_path / "megatron").returncode == 0
    done = _convert("megatron-to-hf", tmp_path / "back", tmp_path / "megatron")
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.dtype == dtype for tensor in after.values())
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    for name in names:
        assert (tmp_path / "back" / name).read_text() == (source / name).read_text()


def test_without_tokenizer_files_it_warns(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_llama / name, source / name)
    assert _convert("hf-to-megatron", source, tmp_path / "megatron").returncode == 0
    done = _convert("megatron-to-hf", tmp_path / "back", tmp_path / "megatron")
    assert done.returncode == 0
    assert "warning: " in done.stdout
    assert "no tokenizer files" in done.stdout


def test_refusals_are_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    for direction, hf, megatron, message in (
        ("hf-to-megatron", tiny_llama, tiny_llama, "exists"),
        ("megatron-to-hf", tmp_path, tmp_path, "exists"),
        ("megatron-to-hf", tmp_path / "new", tmp_path / "nowhere", "does not exist"),
    ):
        done = _convert(direction, hf, megatron)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
