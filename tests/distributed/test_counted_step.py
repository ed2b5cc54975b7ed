"""The step counted by formula is the simulated step of the run's own code: FLOPs, bytes sent, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.report import SimulatedStep
from megatron_probsft.training.simulate.simulate_step import simulate_step
from megatron_probsft.training.simulate.step_samples import full_packs
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.throughput.step_counts import counted_step
from megatron_probsft.training.throughput.workload import plan_workload
from tests.support.sizes import rows

TP: dict[str, Any] = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
CASES: dict[str, dict[str, Any]] = {
    "TP 2, PP 2": {**TP, "pipeline_model_parallel_size": 2},
    "CP 2": {"context_parallel_size": 2},
    "TP 2, all again": {
        **TP, "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1,
    },
    "TP 2, MLP again": {
        **TP, "context_parallel_size": 2, "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "mlp"],
    },
    "PP 2, interleaved": {
        "pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2,
    },
}  # fmt: skip
WORLD = 8


@pytest.mark.parametrize("case", rows(CASES, fast=[], rare=[*CASES][1:]))
def test_counted_is_simulated(case: str, tiny_llama: Path) -> None:
    config = by_device(
        TrainConfig.of(seq_length=256, global_batch_size=16, train_iters=1, **CASES[case]), None, WORLD,
        gpu=True,
    )  # fmt: skip
    hf = read_hf_model(tiny_llama)
    simulated = simulate_step(config, tiny_llama, full_packs(config), WORLD)
    workload = plan_workload(full_packs(config), config.batch, config.layout, simulated.data_parallel_size)
    counted = counted_step(config, hf.family, hf.shape, workload)
    for ours, theirs in zip(counted.stages, simulated.stages, strict=True):
        assert (ours.parameters, ours.layers, ours.ranks) == (theirs.parameters, theirs.layers, theirs.ranks)
        assert ours.memory.static == pytest.approx(theirs.memory.static, rel=0.01)  # but for buckets' ends
        assert ours.flops.linear == pytest.approx(theirs.flops.linear, rel=1e-3)
        assert ours.flops.head == pytest.approx(theirs.flops.head, rel=1e-3)
        assert ours.flops.attention == pytest.approx(theirs.flops.attention, rel=0.01)
    assert _sent(counted) == pytest.approx(_sent(simulated), rel=0.02)


def _sent(step: SimulatedStep) -> dict[str, float]:
    """Bytes by stage, group and operation, of all that is more than a handful of numbers."""
    sent: dict[str, float] = {}
    for stage in step.stages:
        for each in stage.collectives:
            if each.bytes > 2**16:
                sent[f"{stage.stage} {each.group} {each.operation}"] = each.bytes
    return sent
