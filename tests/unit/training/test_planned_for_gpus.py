"""What a dry run for GPUs plans: packs, parts of layers computed again, layouts that fit once simulated."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.scaling.models import MODELS
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import Batches
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.step_samples import StepSamples, full_packs, store_of
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.throughput import show
from megatron_probsft.training.throughput.step_counts import counted_step
from megatron_probsft.training.throughput.workload import plan_workload


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig.of(**{"bf16": True, "seq_length": 2048, "global_batch_size": 64} | settings)


def test_parts_of_layers_that_are_computed_again() -> None:
    """An MLP keeps 3 f numbers per token, two norms' outputs are 2 h; the layer at work has its own."""
    model, layers, tokens = MODELS["Llama-3.1-8B"], 32, 2048
    kept, linear = {}, {}
    for modules in ([], ["core_attn"], ["layernorm"], ["mlp"]):
        again = {"recompute_granularity": "selective", "recompute_modules": modules} if modules else {}
        config = _config(**again)
        workload = plan_workload(full_packs(config), config.batch, config.layout, 1)
        stage = counted_step(config, model.family, model.shape, workload).stages[0]
        kept["".join(modules)], linear["".join(modules)] = stage.memory.activations, stage.flops.linear
    assert kept["core_attn"] == kept[""]
    assert kept[""] - kept["layernorm"] == (layers - 1) * tokens * 2 * 4096 * 2
    assert kept[""] - kept["mlp"] == (layers - 1) * tokens * 3 * 14336 * 2
    assert linear["core_attn"] == linear["layernorm"] == linear[""]
    assert linear["mlp"] - linear[""] == 64 * layers * 2 * tokens * 4096 * 3 * 14336


def test_suggested_layouts_of_which_none_fits_when_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = by_device(
        _config(dry_run=True, world_size=8, gpu="h100-80gb", suggest_layout=True), None, 8, gpu=True
    )
    small, large, samples = MODELS["Qwen2.5-7B"], MODELS["Llama-3.1-70B"], full_packs(config)
    workload = plan_workload(samples, config.batch, config.layout, 8)
    step = counted_step(config, large.family, large.shape, workload)
    monkeypatch.setattr(show, "simulate_step", lambda *_: step)
    hf: Any = SimpleNamespace(family=small.family, shape=small.shape, folder=None)
    out = Console(file=io.StringIO(), width=150)
    with pytest.raises(UserError, match="none of the 3 layouts that were simulated fits into h100-80gb"):
        show.show_estimates(config, hf, samples, 8, out)


def test_packs_are_as_gpus_have_them_whatever_computes_the_plan() -> None:
    for cp in (1, 2):
        config = _config(seq_length=300, context_parallel_size=cp)
        store = store_of(StepSamples((101,) * 64, (100,) * 64))
        batch = config.replace(train_iters=1).batch
        plan = Batches(store, batch, config.layout, (0, 4)).on_gpus().training_plan(0)
        assert max(plan.lengths) == {1: 384, 2: 512}[cp]  # three samples, in tiles of 128 on each rank
