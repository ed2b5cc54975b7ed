"""Whole-model conversion between a Hugging Face folder and a Megatron checkpoint, in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint import hf_weights, safetensors_folder, torch_dist
from megatron_probsft.checkpoint.run_folder import find_checkpoint, hf_folder_of
from megatron_probsft.checkpoint.saving import Save
from megatron_probsft.models.build import HFModel, Parallelism, build_model, read_hf_model, transformer_config
from megatron_probsft.runtime.errors import UserError


def hf_to_megatron(hf_folder: Path, run_folder: Path) -> Path:
    """Write `run_folder/iter_0000000` in the dtype of the source; it loads at any TP × PP.

    Needs `distributed.initialize()` with one process. Returns the checkpoint's folder.

    Raises:
        UserError: unsupported model, missing or misshapen tensors, target exists.
    """
    if run_folder.exists():
        raise UserError(f"{run_folder} exists: choose another folder, or remove it")
    hf = read_hf_model(hf_folder)
    reader = safetensors_folder.TensorReader(hf.folder)
    hf_weights.check_tensors(reader, hf)
    gpt = _build(hf, reader.dtype("model.norm.weight"))
    hf_weights.load_hf_weights(gpt, hf)
    run_folder.mkdir(parents=True)
    content = {
        "model": torch_dist.model_state(gpt),
        "iteration": 0,
        "consumed_samples": 0,
        "run": {"save_optim": False},
    }
    return Save(run_folder, 0, content, hf.folder, config_yaml=None).finish()


def megatron_to_hf(run_folder: Path, hf_folder: Path) -> list[str]:
    """Write the newest checkpoint of `run_folder` as a Hugging Face folder, in the dtype it was saved in.

    Needs `distributed.initialize()` with one process.

    Returns:
        Warnings for the user, one line each.

    Raises:
        UserError: no whole checkpoint, no Hugging Face config with it, target exists.
    """
    if hf_folder.exists():
        raise UserError(f"{hf_folder} exists: choose another folder, or remove it")
    checkpoint, _ = find_checkpoint(run_folder)
    hf = read_hf_model(hf_folder_of(checkpoint))
    gpt = _build(hf, _saved_dtype(checkpoint))
    torch_dist.load_model(gpt, checkpoint)
    hf_weights.save_hf_weights(gpt, hf, hf_folder)
    if not any(hf_folder.glob("tokenizer*")):
        return [f"{checkpoint / 'hf'} has no tokenizer files: {hf_folder} has none either"]
    return []


def _build(hf: HFModel, dtype: torch.dtype) -> list[GPTModel]:
    return build_model(hf.shape, transformer_config(hf.shape, Parallelism(), dtype))


def _saved_dtype(checkpoint: Path) -> torch.dtype:
    tensors = dist_checkpointing.load_tensors_metadata(str(checkpoint))
    tensor = tensors["decoder.final_layernorm.weight"]
    assert isinstance(tensor, ShardedTensor)
    return tensor.dtype
