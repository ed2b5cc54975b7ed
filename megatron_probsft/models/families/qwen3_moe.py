"""Qwen3-MoE: Qwen3 with a mixture of experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_probsft.models.decoder import ATTENTION, NORMS, QK_NORMS, decoder_shape
from megatron_probsft.models.family import Experts, Family, ModelShape, Weight
from megatron_probsft.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_EXPERTS = (
    # Megatron-Core, Hugging Face, cut
    Weight("mlp.router.weight",
           "mlp.gate.weight", "replicated"),
    Weight("mlp.experts.local_experts.{expert}.linear_fc1.weight",
           ("mlp.experts.{expert}.gate_proj.weight",
            "mlp.experts.{expert}.up_proj.weight"), "gated"),
    Weight("mlp.experts.local_experts.{expert}.linear_fc2.weight",
           "mlp.experts.{expert}.down_proj.weight", "row"),
)  # fmt: skip


def _shape(config: PretrainedConfig) -> ModelShape:
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        raise UserError(
            f"decoder_sparse_step={config.decoder_sparse_step}, mlp_only_layers={config.mlp_only_layers}: "
            "dense layers among mixtures are not supported (supported: 1 and none)"
        )
    ffn = config.moe_intermediate_size
    experts = Experts(config.num_experts, config.num_experts_per_tok, ffn, config.norm_topk_prob)
    return decoder_shape(config, qk_norm=True, ffn_hidden_size=ffn, experts=experts)


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), _shape, [*NORMS, *ATTENTION, *QK_NORMS, *_EXPERTS])
