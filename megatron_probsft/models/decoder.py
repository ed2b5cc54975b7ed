"""What Llama-like decoders share: the fields of their configs, the names and layouts of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_probsft.models.family import Experts, ModelShape, WeightRule
from megatron_probsft.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LAYER = "decoder.layers.{layer}."
_HF_LAYER = "model.layers.{layer}."
_ROPE_SCALINGS = ("linear", "llama3")
# Fields, of any family, that would change the mathematics.
_REFUSED = {
    "mlp_bias": (False, "MLPs without bias"),
    "attention_bias": (False, "attention without bias, or on q, k and v alone as in Qwen2"),
    "partial_rotary_factor": (1.0, "rotary embeddings over whole heads"),
    "attn_logit_softcapping": (None, "attention without soft caps"),
    "final_logit_softcapping": (None, "logits without soft caps"),
    "logit_scale": (1.0, "logits as they come"),
    "attention_multiplier": (None, "scores over √head_dim"),
    "residual_multiplier": (1.0, "residuals as they come"),
    "embedding_multiplier": (1.0, "embeddings as they come"),
    "pretraining_tp": (1, "1, which is what every published model uses"),
    "quantization_config": (None, "weights that are not quantized"),
}


def decoder_shape(config: PretrainedConfig, **family: Any) -> ModelShape:
    """Read the fields that Llama-like decoder configs share; `family` are `ModelShape`'s others.

    Raises:
        UserError: a field would change the mathematics in a way that is not implemented.
    """
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(f"hidden_act {config.hidden_act!r} is not supported (supported: 'silu')")
    for name, (plain, supported) in _REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value != plain:
            raise UserError(f"{name}={value} in config.json is not supported (supported: {supported})")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        **{
            "num_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "ffn_hidden_size": config.intermediate_size,
            "num_attention_heads": heads,
            "num_query_groups": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": _positions(config),
            "tied_embeddings": bool(config.tie_word_embeddings),
            "rope_frequencies": _rope_frequencies(config, head_dim),
            "norm_epsilon": config.rms_norm_eps,
        }
        | family
    )


def decoder_rules(shape: ModelShape, mlp: list[WeightRule] | None = None) -> list[WeightRule]:
    """The rules that Llama-like decoders share; `lm_head` only where embeddings are untied.

    mlp: the feed-forward layer's, instead of a dense one's.
    """
    hidden, attention = shape.hidden_size, _HF_LAYER + "self_attn."
    query, group = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_query_groups))

    def norm(megatron: str, hf: str, size: int = hidden) -> WeightRule:
        return WeightRule(megatron, (hf,), "replicated", ((size,),))

    def qkv(kind: str, *width: int) -> WeightRule:
        return WeightRule(
            f"{_LAYER}self_attention.linear_qkv.{kind}",
            tuple(f"{attention}{name}_proj.{kind}" for name in "qkv"),
            "qkv",
            ((query, *width), (group, *width), (group, *width)),
        )

    def vocabulary(megatron: str, hf: str) -> WeightRule:
        return WeightRule(megatron, (hf,), "vocab", ((shape.vocab_size, hidden),))

    rules = [
        vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        norm(_LAYER + "input_layernorm.weight", _HF_LAYER + "input_layernorm.weight"),
        qkv("weight", hidden),
        WeightRule(
            _LAYER + "self_attention.linear_proj.weight",
            (attention + "o_proj.weight",),
            "row",
            ((hidden, query),),
        ),
        norm(_LAYER + "pre_mlp_layernorm.weight", _HF_LAYER + "post_attention_layernorm.weight"),
        *(_dense_rules(shape) if mlp is None else mlp),
        norm("decoder.final_layernorm.weight", "model.norm.weight"),
    ]
    if shape.qkv_bias:
        rules.append(qkv("bias"))
    if shape.qk_norm:
        for name in "qk":
            rules.append(
                norm(
                    f"{_LAYER}self_attention.{name}_layernorm.weight",
                    f"{attention}{name}_norm.weight",
                    shape.head_dim,
                )
            )
    if not shape.tied_embeddings:
        rules.append(vocabulary("output_layer.weight", "lm_head.weight"))
    return rules


def expert_rules(shape: ModelShape, block: str, gate: str, up: str, down: str) -> list[WeightRule]:
    """A mixture's rules: `block` holds `gate.weight`, the router, and `experts.N` with these three."""
    experts = _experts(shape)
    hf = f"{_HF_LAYER}{block}."
    return [
        WeightRule(
            _LAYER + "mlp.router.weight",
            (hf + "gate.weight",),
            "replicated",
            ((experts.count, shape.hidden_size),),
        ),
        *_feed_forward(
            shape.hidden_size,
            experts.ffn_hidden_size,
            _LAYER + "mlp.experts.local_experts.{expert}.",
            tuple(f"{hf}experts.{{expert}}.{name}.weight" for name in (gate, up, down)),
        ),
    ]


def _dense_rules(shape: ModelShape) -> list[WeightRule]:
    names = tuple(f"{_HF_LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    return _feed_forward(shape.hidden_size, shape.ffn_hidden_size, _LAYER + "mlp.", names)


def _feed_forward(hidden: int, ffn: int, megatron: str, hf: tuple[str, ...]) -> list[WeightRule]:
    return [
        WeightRule(megatron + "linear_fc1.weight", hf[:2], "gated", ((ffn, hidden), (ffn, hidden))),
        WeightRule(megatron + "linear_fc2.weight", hf[2:], "row", ((hidden, ffn),)),
    ]


def _experts(shape: ModelShape) -> Experts:
    assert shape.experts is not None
    return shape.experts


def _positions(config: PretrainedConfig) -> int:
    """Full attention equals the model's own up to here. Qwen's configs hold a window that may be off."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _rope_frequencies(config: PretrainedConfig, head_dim: int) -> tuple[float, ...]:
    """By transformers' own functions."""
    # Here: which architectures there are is asked before anything that takes seconds is imported.
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
    if kind == "default":
        theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
        powers = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return tuple((1.0 / theta**powers).tolist())
    if kind not in _ROPE_SCALINGS:
        raise UserError(
            f"rope scaling {kind!r} is not supported (supported: none, {', '.join(_ROPE_SCALINGS)}): {rope}"
        )
    try:
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    except (KeyError, TypeError) as error:
        raise UserError(f"rope scaling {rope} is incomplete: {type(error).__name__} {error}") from None
    return tuple(frequencies.tolist())
