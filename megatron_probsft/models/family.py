"""What the project knows of a model family: how its Hugging Face config and weights map to Megatron-Core.

A family is one small file (`llama.py`, `qwen2.py`) with a config mapping and a table of `WeightRule`s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

from megatron_probsft.runtime.errors import UserError

Layout = Literal["replicated", "row", "vocab", "qkv", "gated"]
"""How a Megatron parameter is cut over tensor-parallel ranks, and made of its Hugging Face sources.

replicated  one source, whole on every rank
row         one source, cut along dim 1
vocab       one source, cut along dim 0 after padding with zero rows to the padded vocabulary
qkv         sources q, k, v; rows by query group, [q of group 0, k 0, v 0, q of group 1, …]; cut by group
gated       sources gate, up; each cut along dim 0, then stacked [gate shard, up shard]
"""


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter (`{layer}` is the global layer number, from 0) and its Hugging Face sources."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True)
class ModelShape:
    """The sizes that both sides share; all in elements."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    rope_theta: float
    rope_scaling_factor: float | None
    """Llama-3 rotary scaling factor, or None."""
    norm_epsilon: float
    qkv_bias: bool


@dataclass(frozen=True)
class Family:
    """A model family: `architectures` are the names in config.json that it serves."""

    name: str
    architectures: tuple[str, ...]
    shape: Callable[[PretrainedConfig], ModelShape]
    rules: Callable[[ModelShape], list[WeightRule]]


def family_of(architecture: str) -> Family:
    """The family that serves an architecture, as config.json names it.

    Raises:
        UserError: the architecture is not supported; the message lists those that are.
    """
    from megatron_probsft.models import llama, qwen2

    families = (llama.FAMILY, qwen2.FAMILY)
    for family in families:
        if architecture in family.architectures:
            return family
    supported = ", ".join(name for family in families for name in family.architectures)
    raise UserError(f"model architecture {architecture!r} is not supported; supported: {supported}")


def shape_from_decoder_config(config: PretrainedConfig, *, qkv_bias: bool) -> ModelShape:
    """Read the fields that Llama-like decoder configs share.

    Raises:
        UserError: a field would change the mathematics in a way that is not implemented.
    """
    if config.hidden_act != "silu":
        raise UserError(f"hidden_act {config.hidden_act!r} is not supported (supported: 'silu')")
    if getattr(config, "mlp_bias", False):
        raise UserError("mlp_bias=true is not supported (MLPs with bias)")
    theta, factor = _rope(config)
    heads = config.num_attention_heads
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        tied_embeddings=bool(config.tie_word_embeddings),
        rope_theta=theta,
        rope_scaling_factor=factor,
        norm_epsilon=config.rms_norm_eps,
        qkv_bias=qkv_bias,
    )


def decoder_rules(shape: ModelShape) -> list[WeightRule]:
    """The rules that Llama-like decoders share; `lm_head` only where embeddings are untied."""
    layer = "decoder.layers.{layer}."
    hf = "model.layers.{layer}."
    attention = hf + "self_attn."
    rules = [
        WeightRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab"),
        WeightRule(layer + "input_layernorm.weight", (hf + "input_layernorm.weight",), "replicated"),
        WeightRule(
            layer + "self_attention.linear_qkv.weight",
            tuple(f"{attention}{name}_proj.weight" for name in "qkv"),
            "qkv",
        ),
        WeightRule(layer + "self_attention.linear_proj.weight", (attention + "o_proj.weight",), "row"),
        WeightRule(
            layer + "pre_mlp_layernorm.weight", (hf + "post_attention_layernorm.weight",), "replicated"
        ),
        WeightRule(
            layer + "mlp.linear_fc1.weight", (hf + "mlp.gate_proj.weight", hf + "mlp.up_proj.weight"), "gated"
        ),
        WeightRule(layer + "mlp.linear_fc2.weight", (hf + "mlp.down_proj.weight",), "row"),
        WeightRule("decoder.final_layernorm.weight", ("model.norm.weight",), "replicated"),
    ]
    if shape.qkv_bias:
        rules.append(
            WeightRule(
                layer + "self_attention.linear_qkv.bias",
                tuple(f"{attention}{name}_proj.bias" for name in "qkv"),
                "qkv",
            )
        )
    if not shape.tied_embeddings:
        rules.append(WeightRule("output_layer.weight", ("lm_head.weight",), "vocab"))
    return rules


def _rope(config: PretrainedConfig) -> tuple[float, float | None]:
    """(theta, Llama-3 scaling factor or None). Megatron-Core fixes the other three Llama-3 constants."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return float(theta), None
    constants = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind == "llama3" and all(rope.get(key) == value for key, value in constants.items()):
        return float(theta), float(rope["factor"])
    raise UserError(f"rope scaling {rope} is not supported (supported: none, and llama3 with {constants})")
