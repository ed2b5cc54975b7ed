"""Mixtures of experts in training: layouts against one process, one process against transformers, resume."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_probsft.runtime.errors import UserError
from tests.distributed.test_training_parity import STEPS, _compare, _plain_transformers
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, records, train, write_pairs

EP, TP, PP, CP = (f"{name}_parallel_size" for name in (
    "expert_model", "tensor_model", "pipeline_model", "context"))  # fmt: skip
SP = {"sequence_parallel": True}
SHARDED = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "EP 2": (2, {EP: 2}),
    "EP 2, not packed": (2, {EP: 2, "packing": False, "micro_batch_size": 2}),
    "EP 2 × DP 2, distributed optimizer + overlaps": (4, SHARDED | {EP: 2}),
    "TP 2 × EP 2 + SP": (4, SP | {TP: 2, EP: 2}),
    "TP 2 + SP": (2, SP | {TP: 2}),
    "PP 2 × EP 2": (4, {PP: 2, EP: 2}),
    "CP 2 × EP 2": (2, {CP: 2, EP: 2}),
    "full recompute": (
        2,
        {EP: 2, "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    ),
}
MODELS = ["Mixtral", "Qwen3-MoE"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {case: save_tiny_family(root / case, case, num_hidden_layers=2) for case in MODELS}


@pytest.fixture(scope="module")
def one_process(
    models: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Run folders, with the trained model in `hf`."""
    root = tmp_path_factory.mktemp("one")
    for case, model in models.items():
        train(1, _config(root / case, model, data, save_hf=str(root / case) + " hf"))
    return {case: root / case for case in models}


def _config(folder: Path, model: Path | None, data: Path, **settings: Any) -> Any:
    return config_for(folder, model, data, **({"train_iters": STEPS, "lr": 2e-3} | settings))


EVERY_WAY = list(itertools.product(LAYOUTS, MODELS))
OFTEN = [(layout, MODELS[number % 2]) for number, layout in enumerate(LAYOUTS)]


@pytest.mark.parametrize(
    ("layout", "case"),
    rows(EVERY_WAY, fast=OFTEN[:1], rare=[way for way in EVERY_WAY if way not in OFTEN]),
)
def test_layout_equals_one_process(
    layout: str, case: str, one_process: dict[str, Path], models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    ranks, settings = LAYOUTS[layout]
    folder = tmp_path / "hf"
    runs = train(ranks, _config(tmp_path / "run", models[case], data, save_hf=str(folder), **settings))
    _compare(runs, records(one_process[case], "train"), 1e-5)
    weights = load_file(folder / "model.safetensors")
    expected = load_file(str(one_process[case]) + " hf/model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("case", rows(MODELS, fast=["Mixtral"]))
def test_one_process_equals_plain_transformers(
    case: str, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    runs = train(1, config_for(tmp_path / "run", models[case], data, train_iters=STEPS))
    _compare(runs, _plain_transformers(models[case], data, lambda p: -p.log()), 1e-4)


@pytest.mark.size("test")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, {EP: 2}), (2, {EP: 2})),
        ((4, SP | {TP: 2, EP: 2, "use_distributed_optimizer": True}),
         (2, {EP: 2, "use_distributed_optimizer": True})),
        ((2, {EP: 2}), (1, {})),
    ],
    ids=["the same", "TP 2 × EP 2 to EP 2", "EP 2 to one process"],
)  # fmt: skip
def test_a_stopped_run_continues(
    first: tuple, second: tuple, one_process: dict[str, Path], models: dict[str, Path], data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    common: dict[str, Any] = {"save_optim": True, "check_weight_hash_across_dp_replicas_interval": 1}
    train(first[0], _config(folder, models["Mixtral"], data, exit_interval=2, **common, **first[1]))
    train(second[0], _config(folder, None, data, load=str(folder), **common, **second[1]))
    _compare(records(folder, "train"), records(one_process["Mixtral"], "train"), 1e-5)


def test_layouts_that_do_not_fit(
    models: dict[str, Path], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    def refused(message: str, model: Path, ranks: int, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            train(ranks, _config(tmp_path / "run", model, data, **settings))

    refused(r"4 expert\(s\) do not divide by --expert-model-parallel-size 3; possible: 1, 2, 4",
            models["Mixtral"], 3, **{EP: 3})  # fmt: skip
    refused(r"1 expert\(s\) do not divide by --expert-model-parallel-size 2", tiny_llama, 2, **{EP: 2})
    refused("2 processes of a pipeline stage do not divide into tensor × expert parallel groups of 1 × 4",
            models["Mixtral"], 2, **{EP: 4})  # fmt: skip
    refused("mixture-of-experts models need --sequence-parallel", models["Mixtral"], 2, **{TP: 2})
