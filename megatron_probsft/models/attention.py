"""Causal self-attention over packs for layers without Transformer Engine, on CUDA and on CPU."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right

from megatron_probsft.models.context_parallel import Span, gather_pack
from megatron_probsft.models.packs import Pack
from megatron_probsft.models.rotary import rotate
from megatron_probsft.runtime.device import current_device
from megatron_probsft.runtime.distributed import context_group
from megatron_probsft.runtime.errors import UserError


class PackedAttention(MegatronModule):
    """Causal self-attention over packed sequences.

    It takes what Transformer Engine's DotProductAttention takes for `qkv_format="thd"`: query
    `[t, heads, head_dim]`, key and value `[t, groups, head_dim]` of this tensor-parallel rank and
    `cu_seqlens_q` `[n + 1]`; `packs.Pack` on the parameters saves it from asking the device for these. Query
    and key come unrotated: it rotates them where the pack has cos and sin. Without packed_seq_params:
    `[s, b, heads, head_dim]`, b sequences of length s, rotated by their layer.
    Under context parallelism t counts this rank's part of the pack (see `context_parallel`), cu_seqlens the
    whole pack's; collectives: keys and values are all-gathered, their gradients reduce-scattered.

    How it computes follows from `config.attention_backend` (see `flash_attention_for`): one varlen call over
    all sequences, or one `scaled_dot_product_attention` per sequence.

    Returns:
        `[t, heads × head_dim]`, or `[s, b, heads × head_dim]`, in the dtype of query.

    Raises:
        UserError: the attention backend that is asked for is not to be had.
    """

    rotates = True

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
        on_meta = torch.get_default_device().type == "meta"  # built for its tensors' names and shapes
        self._flash = None if on_meta else flash_attention_for(config)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_megatron_passes_more: object,
    ) -> torch.Tensor:
        pack = None if packed_seq_params is None else Pack.of(packed_seq_params)
        if pack is not None and pack.rotary is not None:
            query, key = rotate(query, key, *pack.rotary)
        dtype = query.dtype
        if self._flash is None and query.device.type == "cpu":
            # Its bfloat16 kernel takes 2.4 times as long, casts included.
            query, key, value = query.float(), key.float(), value.float()
        if pack is None:
            heads_first = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]
            return self._attend(*heads_first).permute(2, 0, 1, 3).flatten(2).to(dtype)
        if self.config.context_parallel_size > 1:
            order = pack.pack_order if self._flash is None else pack.key_order
            key, value = gather_pack(torch.stack([key, value], dim=1), order, context_group()).unbind(1)
        if self._flash is not None:
            return self._flash(query, key, value, pack, self.softmax_scale).flatten(1)
        return self._per_sequence(query, key, value, pack.spans).flatten(1).to(dtype)

    def _per_sequence(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: list[Span]
    ) -> torch.Tensor:
        lengths = [end - first for first, end, _ in spans]
        query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        outputs = [
            self._attend(part, key[:, :, start:end], value[:, :, start:end])
            for part, (_, end, start) in zip(query.split(lengths, dim=2), spans, strict=True)
        ]
        return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of queries whose positions are the last ones of the keys'."""
        if q.is_cuda and q.dtype == torch.float32:
            # The memory-efficient kernel, which alone takes float32, has as many key heads as queries'.
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
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


FlashAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Pack, float | None], torch.Tensor]
"""Of query, key, value, pack, scale; the keys of each of the pack's spans one after the other."""


def flash_attention_for(config: TransformerConfig) -> FlashAttention | None:
    """Return one flash attention call over all of a pack's spans, or None: a call per sequence.

    `config.attention_backend`, by Megatron-Core's names: auto takes flash where it can be had, which is on
    CUDA from compute capability 8.0 on, in bfloat16 or float16. flash insists on it. unfused and local are a
    call per sequence, on whichever kernel torch has for it. fused is Transformer Engine's alone.

    The kernel is torch's own (`torch.nn.attention.varlen`); on Hopper FlashAttention 3 instead, where
    its package `flash_attn_interface` is installed. FlashAttention 2's package is what torch has built in.

    Raises:
        UserError: the backend is fused, or flash where it can't be had.
    """
    backend = config.attention_backend
    if backend == AttnBackend.fused:
        raise UserError("--attention-backend fused is Transformer Engine's: take auto, flash or unfused")
    if backend not in (AttnBackend.auto, AttnBackend.flash):
        return None
    device = current_device()
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    head_dim = config.kv_channels or 0
    if on_gpu and config.params_dtype != torch.float32 and head_dim <= 256 and head_dim % 8 == 0:
        return _flash_attention()
    if backend == AttnBackend.flash:
        raise UserError(
            "--attention-backend flash needs a GPU of compute capability 8.0 or more, bfloat16 and heads of "
            "8, 16, … 256 elements: take auto"
        )
    return None


@functools.cache
def _flash_attention() -> FlashAttention:
    from torch.nn.attention.varlen import varlen_attn

    if torch.cuda.get_device_capability()[0] == 9 and importlib.util.find_spec("flash_attn_interface"):
        torch.nn.attention.activate_flash_attention_impl("FA3")
    # torch 2.11 has no such argument, and takes fewer key heads as they come
    grouped: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float | None
    ) -> torch.Tensor:
        bounds = pack.varlen
        output = varlen_attn(
            query, key, value, bounds.queries, bounds.keys, bounds.longest_queries, bounds.longest_keys,
            scale=scale, window_size=(-1, 0), **grouped,
        )  # fmt: skip
        assert isinstance(output, torch.Tensor)
        return output

    return attend
