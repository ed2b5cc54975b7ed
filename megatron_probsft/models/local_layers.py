"""Transformer layers that run without Transformer Engine and Apex: their spec, their norm."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_probsft.models.attention import PackedAttention


def local_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron-Core's local layer spec with this file's norm and our attention."""
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, normalization="RMSNorm", qk_layernorm=config.qk_layernorm
    )
    parts: Any = layer.submodules
    if config.qk_layernorm:
        parts.self_attention.submodules.q_layernorm = RMSNorm
        parts.self_attention.submodules.k_layernorm = RMSNorm
    if config.num_moe_experts is not None:  # as Transformer Engine's layers, which fuse no norm into a router
        del parts.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    parts.input_layernorm = RMSNorm
    parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.submodules.core_attention = PackedAttention
    return layer


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension, right under sequence parallelism.

    Megatron-Core's own wrapper refuses sequence parallelism. There each rank sees its part of the sequence,
    so the weight's gradient must be summed over the tensor-parallel group: the attribute asks for that.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LocalBackend(LocalSpecProvider):
    """The classes of local layers: Megatron-Core's, with this file's norm and our attention."""

    def layer_norm(self, rms_norm: bool = True, for_qk: bool = False, has_residual: bool = False) -> Any:
        return RMSNorm

    def core_attention(self) -> type:
        return PackedAttention
