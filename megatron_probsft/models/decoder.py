"""The parts that Llama-like decoders share: the fields of their configs, and tables of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_probsft.models.family import ModelShape, Weight
from megatron_probsft.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NORMS = (
    # Megatron-Core                              Hugging Face                      cut
    Weight("input_layernorm.weight",            "input_layernorm.weight",          "replicated"),
    Weight("pre_mlp_layernorm.weight",          "post_attention_layernorm.weight", "replicated"),
)  # fmt: skip
ATTENTION = (
    Weight("self_attention.linear_qkv.weight", ("self_attn.q_proj.weight",
                                                "self_attn.k_proj.weight",
                                                "self_attn.v_proj.weight"),        "qkv"),
    Weight("self_attention.linear_proj.weight", "self_attn.o_proj.weight",         "row"),
)  # fmt: skip
QK_NORMS = (
    Weight("self_attention.q_layernorm.weight", "self_attn.q_norm.weight",         "replicated"),
    Weight("self_attention.k_layernorm.weight", "self_attn.k_norm.weight",         "replicated"),
)  # fmt: skip
MLP = (
    Weight("mlp.linear_fc1.weight",            ("mlp.gate_proj.weight",
                                                "mlp.up_proj.weight"),             "gated"),
    Weight("mlp.linear_fc2.weight",             "mlp.down_proj.weight",            "row"),
)  # fmt: skip
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
    """The sizes of a model whose config has the fields of Llama's. `family` gives `ModelShape`'s others.

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


def _positions(config: PretrainedConfig) -> int:
    """The longest sequence that full attention fits. Qwen's configs hold a window that may be off."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _rope_frequencies(config: PretrainedConfig, head_dim: int) -> tuple[float, ...]:
    """Radians per position of each pair of a head's elements, by transformers' own functions."""
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
