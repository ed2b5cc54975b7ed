"""OLMo 2: norms after attention and feed-forward layer, not before; and over all heads of query and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.identity_op import IdentityOp

from megatron_probsft.models.decoder import ATTENTION, MLP, decoder_shape
from megatron_probsft.models.family import Family, ModelShape, Weight
from megatron_probsft.runtime.distributed import tensor_group

if TYPE_CHECKING:
    from megatron.core.models.backends import BackendSpecProvider
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.spec_utils import ModuleSpec
    from transformers import PretrainedConfig

_NORMS = (
    # Megatron-Core                                      Hugging Face                        cut
    Weight("self_attention.linear_proj.norm.weight",    "post_attention_layernorm.weight",   "replicated"),
    Weight("mlp.linear_fc2.norm.weight",                "post_feedforward_layernorm.weight", "replicated"),
    Weight("self_attention.q_layernorm.weight",         "self_attn.q_norm.weight",           "replicated",
           lambda shape: (shape.query_size,)),
    Weight("self_attention.k_layernorm.weight",         "self_attn.k_norm.weight",           "replicated",
           lambda shape: (shape.key_size,)),
)  # fmt: skip


def _shape(config: PretrainedConfig) -> ModelShape:
    return decoder_shape(config, qk_norm=True)


def _layers(spec: ModuleSpec, backend: BackendSpecProvider) -> ModuleSpec:
    parts: Any = spec.submodules
    attention, mlp = parts.self_attention.submodules, parts.mlp.keywords["submodules"]
    parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
    attention.linear_qkv = mlp.linear_fc1 = backend.column_parallel_linear()  # no norm fused into them
    attention.linear_proj = mlp.linear_fc2 = _with_norm(backend.row_parallel_linear(), backend.layer_norm())
    attention.q_layernorm, attention.k_layernorm = QueryNorm, KeyNorm
    return spec


def _with_norm(linear: Any, norm: Any) -> type:
    """The backend's row-parallel layer with a norm on its output."""

    class LinearWithNorm(linear):
        def __init__(self, *sizes: int, config: TransformerConfig, **settings: Any) -> None:
            super().__init__(*sizes, config=config, **settings)
            self.norm = norm(config, config.hidden_size, eps=config.layernorm_epsilon)

        def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
            output, _ = super().forward(states)
            return self.norm(output), None

    return LinearWithNorm


class _AllHeadsNorm(torch.nn.Module):
    """RMSNorm over all heads, of which `[…, heads / tp, head_dim]` are on this tensor-parallel rank.

    The weight is whole on every rank, as Megatron-Core expects of q_layernorm and k_layernorm: it sums their
    gradients over the ranks. Collective: an all-reduce of the squares' sum, forward and backward.
    """

    def __init__(self, heads: int, hidden_size: int, config: TransformerConfig, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(heads * hidden_size, dtype=config.params_dtype))
        self._eps = eps

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        group = tensor_group()
        own = states.flatten(-2).float()
        squares = reduce_from_tensor_model_parallel_region(own.square().sum(-1, keepdim=True))
        squares = copy_to_tensor_model_parallel_region(squares)  # sums the gradients of all ranks
        normed = own * torch.rsqrt(squares / len(self.weight) + self._eps)
        weight = self.weight.chunk(group.size())[group.rank()]
        return (normed * weight).to(states.dtype).view_as(states)


class QueryNorm(_AllHeadsNorm):
    def __init__(self, config: TransformerConfig, **settings: Any) -> None:
        super().__init__(config.num_attention_heads, config=config, **settings)


class KeyNorm(_AllHeadsNorm):
    def __init__(self, config: TransformerConfig, **settings: Any) -> None:
        assert config.num_query_groups is not None
        super().__init__(config.num_query_groups, config=config, **settings)


FAMILY = Family("olmo2", ("Olmo2ForCausalLM",), _shape, [*ATTENTION, *MLP, *_NORMS], layers=_layers)
