"""Qwen3-MoE: Qwen3 with a mixture of experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import decoder_rules, decoder_shape, expert_rules
from megatron_probsft.models.family import Experts, Family, ModelShape, WeightRule
from megatron_probsft.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _shape(config: PretrainedConfig) -> ModelShape:
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        raise UserError(
            f"decoder_sparse_step={config.decoder_sparse_step}, mlp_only_layers={config.mlp_only_layers}: "
            "dense layers among mixtures are not supported (supported: 1 and none)"
        )
    ffn = config.moe_intermediate_size
    experts = Experts(config.num_experts, config.num_experts_per_tok, ffn, config.norm_topk_prob)
    return decoder_shape(config, qk_norm=True, ffn_hidden_size=ffn, experts=experts)


def _rules(shape: ModelShape) -> list[WeightRule]:
    return decoder_rules(shape, expert_rules(shape, "mlp", "gate_proj", "up_proj", "down_proj"))


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), _shape, _rules)
