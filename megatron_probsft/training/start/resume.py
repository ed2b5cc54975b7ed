"""The training state as a checkpoint, and back: exact on the same layout, equal up to rounding on others."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_probsft.checkpoint.megatron import torch_dist
from megatron_probsft.checkpoint.megatron.optimizer_state import optimizer_content, read_optimizer
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.tokenizers.load import text_libraries
from megatron_probsft.runtime.device import random_state, restore_random_state
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import Position
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.compare_runs import compare_runs
from megatron_probsft.training.state import TrainState


def content_to_save(state: TrainState, data: TokenStore, *, save_optim: bool) -> dict[str, Any]:
    """Return the state dict of a checkpoint. Collective where weights must first be gathered."""
    state.gather_weights()
    content = _content(state, data, save_optim=save_optim)
    if save_optim:
        content["optimizer"] = optimizer_content(state.optimizer, content["model"])
        content["rng"] = _generators()
    return content


@dataclass(frozen=True)
class Saved:
    """The facts about a checkpoint that are known before the model is built."""

    position: Position
    layout: dict[str, int]
    notes: list[str]
    """The differences that --allow-changed permits, one line each."""


def look_at(checkpoint: Path, config: TrainConfig, data: TokenStore) -> Saved:
    """Refuse, before anything large is built, a checkpoint that this run would not continue. Collective.

    Raises:
        UserError: the checkpoint holds no optimizer, or was made with other data or settings.
    """
    notes, problems = compare_runs(checkpoint, config)
    if problems:
        raise UserError(problems[0])
    BlockReader(checkpoint)  # refuses damaged metadata in a line; torch would print a traceback before ours
    plain: dict[str, Any] = {"run": None, "iteration": None, "consumed_samples": None}
    plain = torch_dist.load_checkpoint(checkpoint, plain)
    run = plain.get("run") or {}
    if not run.get("save_optim", False):
        raise UserError(f"{checkpoint} holds weights only (--no-save-optim): use it with --finetune")
    # The same sources give other tokens where a library changed how it renders or tokenizes.
    if run["data_digest"] != data.digest or run.get("data_content", data.content) != data.content:
        if not config.model.may_change("data"):
            libraries = run.get("text_libraries", text_libraries())
            changed = "" if libraries == text_libraries() else f" (then {libraries}, now {text_libraries()})"
            raise UserError(
                f"{checkpoint} was trained on other data, template, tokenizer or --seq-length{changed}: give "
                "the same, or --allow-changed data, or --finetune to start anew from its weights"
            )
        notes.append("the data or how it is tokenized changed")
    return Saved(Position(plain["iteration"], plain["consumed_samples"]), run["layout"], notes)


def load_state(state: TrainState, checkpoint: Path, saved: Saved, data: TokenStore) -> list[str]:
    """Resume everything: weights, optimizer, schedule, random generators and data position.

    Returns:
        What the user should know, one line each.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    same_layout = saved.layout == _layout()
    content = _content(state, data, save_optim=False)
    if same_layout:
        content["rng"] = _generators()
    loaded = torch_dist.load_checkpoint(checkpoint, content)
    torch_dist.fill_model(state.gpt, loaded["model"])
    model = torch_dist.model_state(state.gpt)
    read_optimizer(state.optimizer, model, BlockReader(checkpoint), loaded["optimizer"])
    state.scheduler.override_opt_param_scheduler = True  # differs from the checkpoint's only on request
    state.scheduler.load_state_dict(loaded["scheduler"])
    state.iteration, state.consumed_samples = loaded["iteration"], loaded["consumed_samples"]
    notes = [f"resumed step {state.iteration} from {checkpoint}", *saved.notes]
    if same_layout:
        if not _restore_generators(loaded["rng"]):
            notes.append("the kind of device changed: its random generator starts anew")
    else:
        notes.append(f"the layout changed from {saved.layout} to {_layout()}: random generators start anew")
    return notes


def _content(state: TrainState, data: TokenStore, *, save_optim: bool) -> dict[str, Any]:
    """Return all but the optimizer and the random generators."""
    return {
        "model": torch_dist.model_state(state.gpt),
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "scheduler": state.scheduler.state_dict(),
        "run": {
            "layout": _layout(),
            "save_optim": save_optim,
            "data_digest": data.digest,
            "data_content": data.content,
            "text_libraries": text_libraries(),
        },
    }


def _layout() -> dict[str, int]:
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    }


def _generators() -> ShardedObject:
    """Return this rank's generator states, one object per (pipeline, tensor, data × context) rank."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": random_state(),
        "megatron": _tracker().get_states(),
    }
    layout = _layout()
    ranks = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return ShardedObject(
        "rng", states, (layout["pipeline"], layout["tensor"], layout["data"]), ranks, replica_id=0
    )


def _tracker() -> Any:
    return tensor_parallel.get_cuda_rng_tracker()


def _restore_generators(states: dict[str, Any]) -> bool:
    """Set all generators; False if the device's were of another kind of device, CPU or GPU, and are left."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"].shape != random_state().shape:
        return False
    restore_random_state(states["cuda"])
    _tracker().set_states(states["megatron"])
    return True
