"""Llama 2, 3, 3.1, 3.2 and models of the same architecture (SmolLM2)."""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_probsft.models.family import Family, ModelShape, decoder_rules, shape_from_decoder_config
from megatron_probsft.runtime.errors import UserError


def _shape(config: PretrainedConfig) -> ModelShape:
    if getattr(config, "attention_bias", False):
        raise UserError("attention_bias=true is not supported for Llama (biases on q, k, v and o)")
    return shape_from_decoder_config(config, qkv_bias=False)


FAMILY = Family("llama", ("LlamaForCausalLM",), _shape, decoder_rules)
