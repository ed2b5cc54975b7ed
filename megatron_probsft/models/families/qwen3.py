"""Qwen3: Llama's architecture with a norm on each head's query and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import ATTENTION, MLP, NORMS, QK_NORMS, decoder_shape
from megatron_probsft.models.family import Family, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _shape(config: PretrainedConfig) -> ModelShape:
    return decoder_shape(config, qk_norm=True)


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), _shape, [*NORMS, *ATTENTION, *QK_NORMS, *MLP])
