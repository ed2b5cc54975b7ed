"""Load Hugging Face weights into a Megatron-Core model on any layout; the names that both sides use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint.cuts import cut, cut_vocab
from megatron_probsft.checkpoint.hf.safetensors_folder import TensorReader
from megatron_probsft.models.family import WeightRule
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime.errors import UserError

_EMBEDDING = "embedding.word_embeddings.weight"
_HF_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Transformer Engine fuses a norm into the linear layer after it and renames its weight.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
# One module per expert, or Transformer Engine's grouped layers with one weight per expert.
_EXPERT = re.compile(
    r"mlp\.experts\.(local_experts\.(?P<local>\d+)\.)?(?P<linear>linear_fc[12])\.weight(?P<grouped>\d*)"
)


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
        if rule.cut == "vocab":
            part = cut_vocab(names[0], reader.read, hf.shape.vocab_size, rank, len(parameter))
        else:
            part = cut(rule, names, reader.read, hf.shape, rank, tp)
        parameter.copy_(part)


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
            by = ", by vocab_size in config.json" if name in (_HF_EMBEDDING, _HEAD) else ""
            problems.append(f"{name} has shape {reader.shape(name)}, expected {wanted[name]}{by}")
    extra = {name for name in present - wanted.keys() if not name.endswith("rotary_emb.inv_freq")}
    if hf.shape.tied_embeddings and _HEAD in extra:
        extra.remove(_HEAD)  # some folders hold the tied tensor twice
        if _HF_EMBEDDING in present and not _equal(reader, _HEAD, _HF_EMBEDDING):
            # transformers would not tie them
            problems.append(
                f"{_HEAD} is not {_HF_EMBEDDING}, as config.json says with tie_word_embeddings: true"
            )
    problems += [f"unexpected {name}" for name in sorted(extra)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{reader.folder}: {'; '.join(problems[:3])}{more}")


def _equal(reader: TensorReader, first: str, second: str) -> bool:
    """True if two tensors of the folder hold the same; a few rows of them are in memory at a time."""
    if reader.shape(first) != reader.shape(second):
        return False
    blocks = (slice(start, start + 4096) for start in range(0, reader.shape(first)[0], 4096))
    return all(torch.equal(reader.read(first, rows), reader.read(second, rows)) for rows in blocks)


def matched_parameters(
    model: Sequence[GPTModel], hf: HFModel
) -> Iterator[tuple[str, torch.nn.Parameter, WeightRule, list[str]]]:
    """Every parameter on this rank: (its local name, the parameter, its rule, its Hugging Face names)."""
    rules = {rule.megatron: rule for rule in hf.family.rules(hf.shape)}
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            general, numbers = _generalise(name, chunk)
            if general == "output_layer.weight" and hf.shape.tied_embeddings:
                general = _EMBEDDING
            rule = rules.get(general)
            assert rule, f"family {hf.family.name} has no weight for Megatron-Core's parameter {general}"
            yield name, parameter, rule, [pattern.format(**numbers) for pattern in rule.hf]


def _generalise(name: str, model: GPTModel) -> tuple[str, dict[str, int]]:
    """The name in the rule of a local parameter, and the global numbers of its layer and its expert."""
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name, {}
    numbers = {"layer": int(model.decoder.layers[int(match[1])].layer_number) - 1}  # type: ignore[arg-type]
    suffix = _FUSED_NORMS.get(match[2], match[2])
    expert = _EXPERT.fullmatch(suffix)
    if expert:
        rank = parallel_state.get_expert_model_parallel_rank()
        size = parallel_state.get_expert_model_parallel_world_size()
        count: int = model.config.num_moe_experts // size  # type: ignore[operator]
        numbers["expert"] = rank * count + int(expert["local"] or expert["grouped"])
        suffix = f"mlp.experts.local_experts.{{expert}}.{expert['linear']}.weight"
    return f"decoder.layers.{{layer}}.{suffix}", numbers


def hf_shapes(hf: HFModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor that the model's Hugging Face folder holds."""
    for rule in hf.family.rules(hf.shape):
        layers = range(hf.shape.num_layers) if "{layer}" in rule.megatron else [0]
        experts = range(hf.shape.experts.count if hf.shape.experts else 0)
        for pattern, shape in zip(rule.hf, rule.shapes, strict=True):
            for layer in layers:
                for expert in experts if "{expert}" in pattern else [0]:
                    yield pattern.format(layer=layer, expert=expert), shape
