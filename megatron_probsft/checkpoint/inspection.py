"""A description of a Hugging Face model's folder, or of a run's. Only headers are read."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_probsft.checkpoint.hf.safetensors_folder import TensorReader
from megatron_probsft.checkpoint.hf.weights import check_tensors
from megatron_probsft.checkpoint.megatron import run_folder
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_yaml_mapping

_LAYOUT = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "num_virtual_stages_per_pipeline_rank", "sequence_parallel",
    "use_distributed_optimizer",
)  # fmt: skip
_VOCABULARY = "embedding.word_embeddings.weight"


def inspect_hf(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder's sizes, dtypes and files, and the problems of its tensors with its config.

    Raises:
        UserError: no model folder, an unsupported model, truncated files.
    """
    hf = read_hf_model(folder)
    reader = TensorReader(hf.folder)
    numbers = {name: math.prod(reader.shape(name)) for name in reader.names()}
    dtypes = Counter[str]()
    for name, count in numbers.items():
        dtypes[str(reader.dtype(name)).removeprefix("torch.")] += count
    try:
        check_tensors(reader, hf)
        problems = None
    except UserError as error:
        problems = str(error)
    files = sorted(hf.folder.glob("*.safetensors"))
    return {
        "kind": "Hugging Face model",
        **_model(hf),
        "parameters": sum(numbers.values()),
        "dtypes": dict(dtypes),
        "tensors": len(numbers),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "tokenizer": _tokenizer(hf.folder),
        "problems": problems,
    }


def inspect_megatron(run: Path, step: int | None = None) -> dict[str, Any]:
    """A run folder's checkpoints, and a description of the newest (or that of `step`).

    Raises:
        UserError: no such folder, no checkpoint in it, damaged metadata.
    """
    checkpoint, step = run_folder.find_checkpoint(run, step)
    tensors = BlockReader(checkpoint).tensors
    model = {
        key: entry
        for key, entry in tensors.items()
        if key.startswith(("embedding.", "decoder.", "output_layer."))
    }
    dtypes = Counter[str]()
    for entry in model.values():
        dtypes[str(entry.properties.dtype).removeprefix("torch.")] += math.prod(entry.size)
    found: dict[str, Any] = {
        "kind": "Megatron torch_dist checkpoint",
        "step": step,
        "steps": {number: _state(run, number) for number in run_folder.saved_steps(run)},
        "parameters": sum(math.prod(entry.size) for entry in model.values()),
        "dtypes": dict(dtypes),
        "tensors": len(model),
        "bytes": sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file()),
        "optimizer": any(key.startswith(("optimizer.", "chained_")) for key in tensors),
    }
    if (checkpoint / "hf" / "config.json").is_file():
        hf = read_hf_model(checkpoint / "hf")
        found |= _model(hf)
        found["tokenizer"] = _tokenizer(checkpoint / "hf")
        if _VOCABULARY in tensors:
            found["vocabulary_padding"] = tensors[_VOCABULARY].size[0] - hf.shape.vocab_size
    else:
        found["family"] = "unknown: it carries no hf/config.json"
    settings = checkpoint / "train_config.yaml"
    if settings.is_file():
        saved = read_yaml_mapping(settings)
        found["objective"] = saved.get("objective")
        found["layout"] = {name: saved[name] for name in _LAYOUT if saved.get(name) not in (None, False, 1)}
        found["trained_on"] = saved.get("data")
    return found


def _model(hf: HFModel) -> dict[str, Any]:
    shape = hf.shape
    rope = dict(getattr(hf.config, "rope_parameters", None) or {})
    sizes: dict[str, Any] = {
        "family": hf.family.name,
        "architecture": (hf.config.architectures or ["?"])[0],
        "layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "attention_heads": shape.num_attention_heads,
        "query_groups": shape.num_query_groups,
        "head_dim": shape.head_dim,
        "vocabulary": shape.vocab_size,
        "context": shape.max_position_embeddings,
        "tied_embeddings": shape.tied_embeddings,
        "rope": rope,
    }
    if shape.experts:
        sizes["experts"] = f"{shape.experts.count}, {shape.experts.per_token} per token"
    return sizes


def _tokenizer(folder: Path) -> str:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return next((name for name in files if (folder / name).is_file()), "none")


def _state(run: Path, step: int) -> str:
    try:
        run_folder.check_whole(run_folder.checkpoint_folder(run, step))
    except UserError as error:
        return f"damaged: {error}"
    return "whole"
