"""Qwen2, Qwen2.5 and Qwen2.5-Math: Llama's architecture with biases on q, k and v."""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_probsft.models.family import Family, ModelShape, decoder_rules, shape_from_decoder_config
from megatron_probsft.runtime.errors import UserError


def _shape(config: PretrainedConfig) -> ModelShape:
    if getattr(config, "use_sliding_window", False):
        raise UserError("use_sliding_window=true is not supported (Qwen2 with full attention is)")
    return shape_from_decoder_config(config, qkv_bias=True)


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), _shape, decoder_rules)
