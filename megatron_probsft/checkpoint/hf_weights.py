"""Hugging Face weights into, and out of, a Megatron-Core model sharded by TP and PP."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint import layouts, safetensors_folder
from megatron_probsft.checkpoint.safetensors_folder import TensorReader
from megatron_probsft.models.build import HFModel
from megatron_probsft.models.family import WeightRule
from megatron_probsft.runtime.distributed import tensor_group
from megatron_probsft.runtime.errors import UserError

_EMBEDDING = "embedding.word_embeddings.weight"
# Transformer Engine fuses a norm into the linear layer after it and renames its weight.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@torch.no_grad()
def load_hf_weights(model: Sequence[GPTModel], hf: HFModel) -> None:
    """Fill this rank's chunks from the folder, reading only this rank's rows; cast to their dtype.

    Raises:
        UserError: missing, unexpected or misshapen tensors, by name; truncated files.
    """
    reader = TensorReader(hf.folder)
    check_tensors(reader, hf)
    tp = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    for _, parameter, rule, names in matched_parameters(model, hf):
        padded = parameter.shape[0] * tp  # only used where dim 0 is the vocabulary
        shard = layouts.cut(rule, names, reader.rows, hf.shape, rank, tp, padded)
        parameter.copy_(shard)


def check_tensors(reader: TensorReader, hf: HFModel) -> None:
    """Compare the folder's tensor names and shapes with the family's table.

    Raises:
        UserError: names the first few tensors that are missing, misshapen or unexpected.
    """
    wanted = dict(hf_shapes(hf))
    present = reader.names()
    problems = [f"missing {name}" for name in sorted(wanted.keys() - present)]
    for name in sorted(wanted.keys() & present):
        if reader.shape(name) != wanted[name]:
            problems.append(f"{name} has shape {reader.shape(name)}, expected {wanted[name]}")
    extra = {name for name in present - wanted.keys() if not name.endswith("rotary_emb.inv_freq")}
    if hf.shape.tied_embeddings:
        extra.discard("lm_head.weight")
    problems += [f"unexpected {name}" for name in sorted(extra)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{reader.folder}: {'; '.join(problems[:3])}{more}")


@torch.no_grad()
def save_hf_weights(model: Sequence[GPTModel], hf: HFModel, target: Path) -> None:
    """Write the model as a Hugging Face folder: config and tokenizer as they came, weights in their dtype.

    Each pipeline stage writes its own shard files, one joined tensor at a time; a temporary folder is
    renamed when all is there. Collective: an all-gather per parameter on the TP group, then the world.

    Raises:
        UserError: the target exists.
    """
    part = target.with_name(target.name + ".part")
    is_writer = (
        dist.get_rank(tensor_group()) == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    )
    if target.exists():
        raise UserError(f"{target} exists: choose another folder, or remove it")
    if dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    tensors = _joined_tensors(model, hf)
    weight_map: dict[str, str] = {}
    if is_writer:
        weight_map = safetensors_folder.write_shards(tensors, part, prefix=f"stage-{stage:03d}")
    else:
        for _ in tensors:  # take part in the gathers
            pass
    maps: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(maps, weight_map)
    if dist.get_rank() == 0:
        safetensors_folder.write_index({k: v for each in maps for k, v in each.items()}, part)
        safetensors_folder.copy_side_files(hf.folder, part)
        safetensors_folder.set_dtype(part, next(model[0].parameters()).dtype)
        part.rename(target)
    dist.barrier()


def _joined_tensors(model: Sequence[GPTModel], hf: HFModel) -> Iterator[tuple[str, torch.Tensor]]:
    group = tensor_group()
    tp = dist.get_world_size(group)
    for name, parameter, rule, hf_names in matched_parameters(model, hf):
        if name == "output_layer.weight" and hf.shape.tied_embeddings:
            continue  # the last stage's copy of the embedding
        shards = [parameter.detach()]
        if tp > 1 and rule.layout != "replicated":
            shards = [torch.empty_like(parameter) for _ in range(tp)]
            dist.all_gather(shards, parameter.detach().contiguous(), group=group)
        joined = layouts.join(rule, [shard.cpu() for shard in shards], hf.shape)
        yield from zip(hf_names, joined, strict=True)


def matched_parameters(
    model: Sequence[GPTModel], hf: HFModel
) -> Iterator[tuple[str, torch.nn.Parameter, WeightRule, list[str]]]:
    """(local name, parameter, rule, Hugging Face names) of every parameter on this rank."""
    rules = {rule.megatron: rule for rule in hf.family.rules(hf.shape)}
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            general, layer = _generalise(name, chunk)
            if general == "output_layer.weight" and hf.shape.tied_embeddings:
                general = _EMBEDDING
            rule = rules[general]
            yield name, parameter, rule, [pattern.format(layer=layer) for pattern in rule.hf]


def _generalise(name: str, model: GPTModel) -> tuple[str, int]:
    """A local parameter name to its rule's pattern and the global layer number."""
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name, -1
    layer = int(model.decoder.layers[int(match[1])].layer_number) - 1  # type: ignore[arg-type]
    suffix = _FUSED_NORMS.get(match[2], match[2])
    return f"decoder.layers.{{layer}}.{suffix}", layer


def hf_shapes(hf: HFModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor that the model's Hugging Face folder holds."""
    for rule in hf.family.rules(hf.shape):
        layers = range(hf.shape.num_layers) if "{layer}" in rule.megatron else [0]
        for pattern, shape in zip(rule.hf, layouts.expected_shapes(rule, hf.shape), strict=True):
            for layer in layers:
                yield pattern.format(layer=layer), shape
