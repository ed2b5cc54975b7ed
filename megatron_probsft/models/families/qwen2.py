"""Qwen2, Qwen2.5 and Qwen2.5-Math: Llama's architecture with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import decoder_rules, decoder_shape
from megatron_probsft.models.family import Family, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _shape(config: PretrainedConfig) -> ModelShape:
    return decoder_shape(config, qkv_bias=True)


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), _shape, decoder_rules)
