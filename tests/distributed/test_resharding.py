"""A checkpoint holds the same numbers whatever layout and optimizer wrote it; each layout reads all of them.

What one layout saved is loaded by another and saved again: tensor by tensor, the two checkpoints are equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_probsft.checkpoint.megatron import optimizer_state, torch_dist
from megatron_probsft.checkpoint.megatron.saving import Save
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.runtime import distributed
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.open_run import open_run
from megatron_probsft.training.start.resume import content_to_save
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, train, write_pairs

TP, PP, EP = (f"{name}_model_parallel_size" for name in ("tensor", "pipeline", "expert"))
CP = "context_parallel_size"
SP = {"sequence_parallel": True}
VPP2 = {"num_virtual_stages_per_pipeline_rank": 2}
UNEVEN = {PP: 2, "decoder_first_pipeline_num_layers": 1}
SHARDED = {"use_distributed_optimizer": True}
OVERLAPS = SHARDED | {"overlap_grad_reduce": True, "overlap_param_gather": True}
BF16 = {"bf16": True}

Layout = tuple[int, dict[str, Any]]
CASES: dict[str, tuple[str, Layout, Layout]] = {
    "TP 2 to PP 2": ("llama", (4, {TP: 2} | SHARDED), (4, {PP: 2} | SHARDED)),
    "DP 3 to one process, bf16": ("llama", (3, OVERLAPS | BF16), (1, BF16)),
    "EP 2 to EP 1": ("mixtral", (4, {EP: 2} | SHARDED), (2, SHARDED)),
    "DP 4 to DP 1": ("llama", (4, SHARDED), (1, SHARDED)),
    "one process to DP 4, bf16": ("llama", (1, BF16), (4, SHARDED | BF16)),
    "DP 2 of either optimizer, bf16": ("llama", (2, BF16), (2, SHARDED | BF16)),
    "DP 2 of either optimizer": ("llama", (2, SHARDED), (2, {})),
    "CP 2 to TP 2": ("llama", (4, {CP: 2} | SHARDED), (4, {TP: 2} | SP | SHARDED)),
    "VPP 2 to uneven stages": ("llama", (4, {PP: 2} | VPP2 | OVERLAPS), (4, UNEVEN | SHARDED)),
    "uneven stages to TP 2 × DP 2": ("llama", (4, UNEVEN | OVERLAPS), (4, {TP: 2} | OVERLAPS)),
    "PP 2 × DP 2 to PP 4": ("llama", (4, {PP: 2} | OVERLAPS), (4, {PP: 4} | SHARDED)),
    "TP 2 × EP 2 to EP 4": ("mixtral", (4, {TP: 2, EP: 2} | SP | SHARDED), (4, {EP: 4} | SHARDED)),
    "EP 1 to EP 2, either optimizer, bf16": ("mixtral", (2, SHARDED | BF16), (4, {EP: 2} | BF16)),
}  # fmt: skip
OFTEN = [*CASES][:3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny") / "mixtral"
    return {"llama": tiny_llama, "mixtral": save_tiny_family(folder, "Mixtral", num_hidden_layers=2)}


def _tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    distributed.initialize()
    content = dist_checkpointing.load_plain_tensors(str(checkpoint))
    # Megatron-Core has two names for main weights, and none where the weights are in float32 themselves.
    return {
        name.replace(".fp32_param.", ".param."): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _save_again(config: TrainConfig, target: Path) -> None:
    run = open_run(config)
    content = content_to_save(run.state, run.inputs.train, save_optim=True)
    Save(target, run.state.iteration, content, SideFiles(run.inputs.hf.folder)).finish()


def _with_megatron_core(config: TrainConfig, checkpoint: Path, target: Path) -> None:
    """Let Megatron-Core's own optimizer read what we wrote, and write what we read."""
    state = open_run(config).state
    model = {"model": torch_dist.model_state(state.gpt)}
    (inner,) = optimizer_state.inner_optimizers(state.optimizer)
    metadata = torch_dist.sharding_metadata()
    wanted = {"optimizer": inner.sharded_state_dict(model, is_loading=True, metadata=metadata)}
    loaded: Any = dist_checkpointing.load(wanted, str(checkpoint))
    read = loaded["optimizer"]["param_state"]
    parameters = [parameter for buffer in inner.buffers for parameter in buffer.param_index_map]
    whole = dict(zip(parameters, read.values(), strict=True))
    ours = list(optimizer_state.optimizer_parts(state.optimizer))
    for part in ours:
        assert part.tensors.keys() == whole[part.parameter].keys() == {"param", "exp_avg", "exp_avg_sq"}
        for name, values in part.tensors.items():
            theirs = whole[part.parameter][name].flatten()[part.start : part.start + len(values)]
            assert torch.equal(values, theirs), name
            assert name == "param" or values.any()

    if any(len(buffer.buckets) > 1 for buffer in inner.buffers):
        return  # Megatron-Core 0.19.2 shifts what it writes by the paddings between buckets (its issue 504)
    theirs = inner.sharded_state_dict(model, metadata=metadata)
    plain = {"optimizer": theirs["optimizer"]}
    Save(target, 1, {"optimizer": theirs}, SideFiles(Path(str(config.model.hf_model)))).finish()
    before = [{name: values.clone() for name, values in part.tensors.items()} for part in ours]
    for part in ours:
        for values in part.tensors.values():
            values.fill_(7.0)
    reader = BlockReader(target / "iter_0000001")
    optimizer_state.read_optimizer(state.optimizer, torch_dist.model_state(state.gpt), reader, plain)
    for part, expected in zip(ours, before, strict=True):
        for name, values in part.tensors.items():
            assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("layout", rows([{TP: 2}, {PP: 2}], fast=[{TP: 2}], rare=[{PP: 2}]), ids=str)
def test_megatron_core_reads_and_writes_the_same(
    layout: dict[str, Any], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """What it writes is also what this trainer wrote before it wrote parts."""
    run = tmp_path / "run"
    settings = {"save_optim": True, "train_iters": 5, **layout, **SHARDED}
    train(4, config_for(run, tiny_llama, data, exit_interval=2, **settings))
    config = config_for(run, tiny_llama, data, load=str(run), **settings)
    run_ranks(4, _with_megatron_core, config, run / "iter_0000002", tmp_path / "theirs")


@pytest.mark.parametrize("case", rows(CASES, fast=[], rare=[case for case in CASES if case not in OFTEN]))
def test_another_layout_reads_and_writes_the_same(
    case: str, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    kind, (ranks, first), (others, second) = CASES[case]
    run, again = tmp_path / "run", tmp_path / "again"
    common: dict[str, Any] = {"save_optim": True, "train_iters": 5}
    train(ranks, config_for(run, models[kind], data, exit_interval=2, **common, **first))
    run_ranks(others, _save_again, config_for(run, None, data, load=str(run), **common, **second), again)
    expected, found = (run_ranks(1, _tensors_of, path / "iter_0000002")[0] for path in (run, again))
    moments = [name for name in expected if name.startswith("optimizer.state.exp_avg")]
    assert len(moments) == 2 * sum(not name.startswith("optimizer") for name in expected)
    for name in expected.keys() | found.keys():
        if name.startswith("optimizer.state.param.") and not (name in expected and name in found):
            weights = name.removeprefix("optimizer.state.param.")  # float32, only one of them names it twice
            assert torch.equal({**expected, **found}[name][:331], expected[weights][:331]), name
            continue
        rows_there = min(len(expected[name]), len(found[name]))  # the vocabulary's padding may differ
        assert torch.equal(expected[name][:rows_there], found[name][:rows_there]), name
