"""A save and a resume take no more memory on a rank than its own part, or than one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_probsft.checkpoint.megatron.checkpoint_bytes import (
    OwnBytes,
    resume_peak_bytes,
    save_peak_bytes,
)
from megatron_probsft.checkpoint.megatron.optimizer_state import optimizer_parts
from megatron_probsft.checkpoint.megatron.saving import Save
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.runtime.host_copies import HostCopies
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start import open_run as opening
from megatron_probsft.training.start.resume import content_to_save
from tests.support.live_bytes import LiveBytes, ResidentBytes
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import config_for, write_pairs

REPLICAS = 4
MODELS: dict[str, dict[str, Any]] = {
    "5 M parameters": {"heads": 6, "head_dim": 64, "layers": 7, "vocab_size": 2000},
    "200 M parameters": {"heads": 16, "groups": 16, "head_dim": 64, "layers": 30, "vocab_size": 56_000},
}
SMALL_THINGS = 2**18  # states of generators and the like


def _own(state: Any) -> OwnBytes:
    weights = [parameter.nbytes for chunk in state.gpt for parameter in chunk.parameters()]
    states = [
        sum(values.nbytes for values in part.tensors.values()) for part in optimizer_parts(state.optimizer)
    ]
    return OwnBytes(sum(weights), max(weights), sum(states), max(states))


def _known(state: Any) -> list[torch.Tensor]:
    """Return the tensors that training holds, with the optimizer's states touched."""
    parts = list(optimizer_parts(state.optimizer))
    for part in parts:
        for name, values in part.tensors.items():
            if name != "param":
                values.normal_()
    known = [values for part in parts for values in part.tensors.values()]
    for chunk in state.model:
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]:
            known += [buffer.param_data, buffer.grad_data]
    return [tensor for tensor in known if tensor is not None]


def _save(config: TrainConfig, folder: Path) -> tuple[OwnBytes, dict[str, tuple[int, int]]]:
    """Return (live tensor bytes, resident bytes) of a save in the foreground and one in the background."""
    run = opening.open_run(config)
    side_files = SideFiles(run.inputs.hf.folder, yaml.safe_dump(run.config.flat()))
    peaks = {}
    for kind, step in (("background", 1), ("foreground", 2)):
        resident = ResidentBytes()
        with LiveBytes(_known(run.state)) as live:
            run.state.iteration = step
            content = content_to_save(run.state, run.inputs.train, save_optim=True)
            copies = HostCopies() if kind == "background" else None
            Save(folder, step, content, side_files, copies=copies).finish()
        peaks[kind] = (live.peak, resident.peak)
        del content, copies
    return _own(run.state), peaks


def _resume(config: TrainConfig) -> tuple[OwnBytes, tuple[int, int]]:
    measured: list[tuple[int, int]] = []
    load = opening.load_state

    def measuring(state: Any, *arguments: Any) -> Any:
        resident = ResidentBytes()
        with LiveBytes(_known(state)) as live:
            notes = load(state, *arguments)
        measured.append((live.peak, resident.peak))
        return notes

    opening.load_state = measuring  # in a process of its own
    return _own(opening.open_run(config).state), measured[0]


@pytest.mark.parametrize("size", rows(MODELS, fast=[], rare=["200 M parameters"]))
def test_a_rank_holds_its_own_part_and_one_tensor(size: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", **MODELS[size], dtype=torch.bfloat16)
    data, run = write_pairs(tmp_path / "train.jsonl", 20), tmp_path / "run"
    settings = {"use_distributed_optimizer": True, "bf16": True, "train_iters": 2, "save_optim": True}
    config = config_for(run, model, data, **settings)
    resident_counts = size == "200 M parameters"

    def limit(own: OwnBytes) -> float:
        bucket = 4 * own.largest_weight // 2  # in float32
        return 1.3 * (own.weights / REPLICAS + own.optimizer + bucket)

    for own, peaks in run_ranks(REPLICAS, _save, config, run):
        assert own.optimizer == pytest.approx(6 * own.weights / REPLICAS, rel=0.01)  # 12 bytes for each 2
        for kind, (live, resident) in peaks.items():
            arithmetic = save_peak_bytes(
                own, REPLICAS, distributed_optimizer=True, in_background=kind == "background", on_gpu=False
            )
            assert live <= arithmetic + SMALL_THINGS, kind
            assert resident <= limit(own) or not resident_counts, kind
            print(size, kind, live, arithmetic, resident, limit(own))
    resumed = config_for(run, None, data, load=str(run), ckpt_step=2, **settings)
    for own, (live, resident) in run_ranks(REPLICAS, _resume, resumed):
        assert live <= resume_peak_bytes(own) + SMALL_THINGS
        assert live <= own.largest_weight * 2 + SMALL_THINGS  # one tensor in float32
        assert resident <= limit(own) or not resident_counts
        print(size, "resume", live, resume_peak_bytes(own), resident, limit(own))
