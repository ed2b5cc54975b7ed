"""The weights saved after training are those that were trained, on every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.sizes import rows
from tests.support.training_runs import config_for, train, write_pairs

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP 2, overlaps": (
        2,
        {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "CP 2": (2, {"context_parallel_size": 2, "save_optim": True}),
    "TP 2 × CP 2 + SP": (
        4,
        {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "sequence_parallel": True},
    ),
    "PP 2 × VPP 2": (2, {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}),
    "PP 3, uneven": (3, {"pipeline_model_parallel_size": 3, "decoder_first_pipeline_num_layers": 2}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _trained(folder: Path, model: Path, data: Path, ranks: int, **settings: Any) -> dict[str, torch.Tensor]:
    train(ranks, config_for(folder / "run", model, data, save_hf=str(folder / "hf"), **settings))
    weights: dict[str, torch.Tensor] = {}
    for file in (folder / "hf").glob("*.safetensors"):
        weights |= load_file(file)
    return weights


@pytest.fixture(scope="module")
def one_process(
    tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    return _trained(tmp_path_factory.mktemp("one"), tiny_llama, data, 1)


@pytest.mark.parametrize("layout", rows(LAYOUTS, fast=list(LAYOUTS)[:1]))
def test_saved_weights_equal_one_process(
    layout: str, one_process: dict[str, torch.Tensor], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    ranks, settings = LAYOUTS[layout]
    weights = _trained(tmp_path, tiny_llama, data, ranks, **settings)
    before = load_file(tiny_llama / "model.safetensors")
    assert weights.keys() == one_process.keys()
    for name, weight in weights.items():
        # The last step alone moves a weight by up to 5e-3.
        torch.testing.assert_close(weight, one_process[name], rtol=0, atol=5e-5, msg=name)
    moved = (weights["model.norm.weight"] - before["model.norm.weight"]).abs().max()
    assert moved > 1e-3
