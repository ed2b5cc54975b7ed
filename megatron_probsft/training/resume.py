"""The training state as a checkpoint, and back: exact on the same layout, equal up to rounding on others."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_probsft.checkpoint import torch_dist
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config import TrainConfig
from megatron_probsft.training.setup import TrainState

# A resumed run that changes one of these would not continue the run it claims to continue.
_MUST_EQUAL = (
    "seed", "global_batch_size", "objective", "loss_denominator", "use_distributed_optimizer", "bf16",
    "train_iters", "train_epochs", "lr", "min_lr", "lr_decay_style", "lr_wsd_decay_style",
    "lr_wsd_decay_iters", "lr_warmup_fraction", "lr_warmup_iters", "weight_decay",
)  # fmt: skip


def save_state(
    state: TrainState,
    run_folder: Path,
    hf_folder: Path,
    config: TrainConfig,
    config_yaml: str,
    data_digest: str,
) -> Path:
    """Write a checkpoint of this iteration. Collective over the world.

    Raises:
        UserError: the disk is full or the folder cannot be written; earlier checkpoints stay whole.
    """
    state.gather_weights()
    content = _content(state, config, data_digest, is_loading=False)
    try:
        return torch_dist.save_checkpoint(run_folder, state.iteration, content, hf_folder, config_yaml)
    except OSError as error:
        raise UserError(f"checkpoint of step {state.iteration} could not be written: {error}") from error


def load_state(state: TrainState, checkpoint: Path, config: TrainConfig, data_digest: str) -> list[str]:
    """Resume everything: weights, optimizer, schedule, random generators and data position.

    Returns:
        What the user should know, one line each.

    Raises:
        UserError: the checkpoint holds no optimizer, or was made with other data or settings.
    """
    check_same_run(checkpoint, config)
    plain = torch_dist.load_checkpoint(checkpoint, {"run": None, "iteration": None})
    run = plain.get("run") or {}
    if not run.get("save_optim", False):
        raise UserError(f"{checkpoint} holds weights only (--no-save-optim): use it with --finetune")
    if run["data_digest"] != data_digest:
        raise UserError(
            f"{checkpoint} was trained on other data, template, tokenizer or --seq-length: give the same, or "
            "--finetune to start anew from its weights"
        )
    same_layout = run["layout"] == _layout()
    content = _content(state, config, data_digest, is_loading=True)
    if not same_layout:
        del content["rng"]
    loaded = torch_dist.load_checkpoint(checkpoint, content)
    state.gpt.load_state_dict(loaded["model"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    state.iteration, state.consumed_samples = loaded["iteration"], loaded["consumed_samples"]
    notes = [f"resumed step {state.iteration} from {checkpoint}"]
    if same_layout:
        _restore_generators(loaded["rng"])
    else:
        notes.append(f"the layout changed from {run['layout']} to {_layout()}: random generators start anew")
    return notes


def check_same_run(checkpoint: Path, config: TrainConfig) -> None:
    """Refuse, before anything large is built, a resume under settings that change the run.

    Raises:
        UserError: names the setting, its old and its new value.
    """
    saved_file = checkpoint / "train_config.yaml"
    if not saved_file.is_file():
        raise UserError(f"{checkpoint} was not written by this trainer: use it with --finetune")
    saved = yaml.safe_load(saved_file.read_text())
    for name in _MUST_EQUAL:
        if saved.get(name) != getattr(config, name):
            raise UserError(
                f"--{name.replace('_', '-')} was {saved.get(name)} in {checkpoint} and is now "
                f"{getattr(config, name)}: give the same, or --finetune to start anew from its weights"
            )


def _content(state: TrainState, config: TrainConfig, data_digest: str, *, is_loading: bool) -> dict[str, Any]:
    model = torch_dist.model_state(state.gpt)
    content: dict[str, Any] = {
        "model": model,
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "scheduler": state.scheduler.state_dict(),
        "run": {"layout": _layout(), "data_digest": data_digest, "save_optim": config.save_optim},
    }
    if config.save_optim:
        content["optimizer"] = state.optimizer.sharded_state_dict(
            content, is_loading=is_loading, metadata=torch_dist.sharding_metadata()
        )
        content["rng"] = _generators()
    return content


def _layout() -> dict[str, int]:
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    }


def _generators() -> ShardedObject:
    """This rank's generator states, one object per (pipeline, tensor, data × context) rank."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
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


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    _tracker().set_states(states["megatron"])
