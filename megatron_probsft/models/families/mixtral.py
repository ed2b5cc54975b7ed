"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import decoder_rules, decoder_shape, expert_rules
from megatron_probsft.models.family import Experts, Family, ModelShape, WeightRule

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _shape(config: PretrainedConfig) -> ModelShape:
    experts = Experts(
        config.num_local_experts, config.num_experts_per_tok, config.intermediate_size, normalized=True
    )
    return decoder_shape(config, experts=experts)


def _rules(shape: ModelShape) -> list[WeightRule]:
    return decoder_rules(shape, expert_rules(shape, "block_sparse_moe", "w1", "w3", "w2"))


FAMILY = Family("mixtral", ("MixtralForCausalLM",), _shape, _rules)
