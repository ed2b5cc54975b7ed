"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import ATTENTION, NORMS, decoder_shape
from megatron_probsft.models.family import Experts, Family, ModelShape, Weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_EXPERTS = (
    # Megatron-Core, Hugging Face, cut
    Weight("mlp.router.weight",
           "block_sparse_moe.gate.weight", "replicated"),
    Weight("mlp.experts.local_experts.{expert}.linear_fc1.weight",
           ("block_sparse_moe.experts.{expert}.w1.weight",
            "block_sparse_moe.experts.{expert}.w3.weight"), "gated"),
    Weight("mlp.experts.local_experts.{expert}.linear_fc2.weight",
           "block_sparse_moe.experts.{expert}.w2.weight", "row"),
)  # fmt: skip


def _shape(config: PretrainedConfig) -> ModelShape:
    experts = Experts(
        config.num_local_experts, config.num_experts_per_tok, config.intermediate_size, normalized=True
    )
    return decoder_shape(config, experts=experts)


FAMILY = Family("mixtral", ("MixtralForCausalLM",), _shape, [*NORMS, *ATTENTION, *_EXPERTS])
