"""Transformer layers that run without Transformer Engine and Apex: layer spec, norm, packed attention."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right

from megatron_probsft.models.context_parallel import gather_pack, local_spans
from megatron_probsft.runtime.distributed import context_group


def local_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron-Core's local layer spec with the norm and the attention of this file."""
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
    """The classes of local layers: Megatron-Core's, with the norm and the attention of this file."""

    def layer_norm(self, rms_norm: bool = True, for_qk: bool = False, has_residual: bool = False) -> Any:
        return RMSNorm

    def core_attention(self) -> type:
        return PackedAttention


class PackedRotary(torch.nn.Module):
    """Rotary angles of every position of a pack at once, instead of sequence by sequence in every layer.

    Megatron-Core takes angles `[t, 1, 1, d]` for packs of t positions too; it only has no way to hand
    position_ids to the embedding, so `attach` catches them at the model's door.
    """

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self._rotary = rotary
        self._position_ids: torch.Tensor | None = None

    @classmethod
    def attach(cls, model: GPTModel) -> None:
        """Let `model(tokens, position_ids, …)` use angles by position wherever it is given a pack."""
        packed = cls(model.rotary_pos_emb)  # type: ignore[arg-type]
        model.rotary_pos_emb = packed  # type: ignore[assignment]
        model.register_forward_pre_hook(lambda _, args: setattr(packed, "_position_ids", args[1]))

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        return self._rotary.get_rotary_seq_len(*args, **kwargs)

    def forward(self, max_seq_len: int, packed_seq: bool = False, **kwargs: Any) -> torch.Tensor:
        angles = self._rotary(max_seq_len, packed_seq=packed_seq, **kwargs)
        if not packed_seq:
            return angles
        assert self._position_ids is not None
        return angles[self._position_ids.flatten()]


class PackedAttention(MegatronModule):
    """Causal self-attention over packed sequences, one `scaled_dot_product_attention` per sequence.

    It takes what Transformer Engine's DotProductAttention takes for `qkv_format="thd"`: query
    `[t, heads, head_dim]`, key and value `[t, groups, head_dim]` of this tensor-parallel rank and
    `cu_seqlens_q` `[n + 1]`. Without packed_seq_params: `[s, b, heads, head_dim]`, b sequences of length s.
    Under context parallelism t counts this rank's part of the pack (see `context_parallel`), cu_seqlens the
    whole pack's; collectives: keys and values are all-gathered, their gradients reduce-scattered.

    Returns:
        `[t, heads × head_dim]`, or `[s, b, heads × head_dim]`, in the dtype of query.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_megatron_passes_more: object,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal
        assert attention_type == "self"
        assert config.attention_dropout == 0.0
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_megatron_passes_more: object,
    ) -> torch.Tensor:
        dtype = query.dtype
        if query.device.type == "cpu":  # its bfloat16 kernel takes 2.4 times as long, casts included
            query, key, value = query.float(), key.float(), value.float()
        if packed_seq_params is None:
            heads_first = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]
            return self._attend(*heads_first).permute(2, 0, 1, 3).flatten(2).to(dtype)
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        # (first position, end, first position of the sequence) of each span of consecutive queries
        spans = [(start, end, start) for start, end in itertools.pairwise(bounds)]
        if self.config.context_parallel_size > 1:
            group = context_group()
            spans = local_spans(bounds, group.rank(), group.size())
            key, value = gather_pack(torch.stack([key, value], dim=1), bounds, group).unbind(1)
        lengths = [end - start for start, end, _ in spans]
        query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        outputs = [
            self._attend(part, key[:, :, first:end], value[:, :, first:end])
            for part, (_, end, first) in zip(query.split(lengths, dim=2), spans, strict=True)
        ]
        return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1).flatten(1).to(dtype)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of queries whose positions are the last ones of the keys'."""
        whole = q.shape[2] == k.shape[2]
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if whole else causal_lower_right(q.shape[2], k.shape[2]),
            is_causal=whole,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
