"""Qwen2, Qwen2.5 and Qwen2.5-Math: Llama's architecture with biases on q, k and v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import ATTENTION, MLP, NORMS, decoder_shape
from megatron_probsft.models.family import Family, ModelShape, Weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BIASES = (
    # Megatron-Core                            Hugging Face             cut
    Weight("self_attention.linear_qkv.bias",  ("self_attn.q_proj.bias",
                                               "self_attn.k_proj.bias",
                                               "self_attn.v_proj.bias"), "qkv"),
)  # fmt: skip


def _shape(config: PretrainedConfig) -> ModelShape:
    return decoder_shape(config, qkv_bias=True)


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), _shape, [*NORMS, *ATTENTION, *_BIASES, *MLP])
