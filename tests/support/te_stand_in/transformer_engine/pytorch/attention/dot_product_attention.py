"""Causal attention over packed sequences, which a context-parallel group may share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from transformer_engine.pytorch.base import TransformerEngineBaseModule, gathered, summed
from transformer_engine.stand_in import calls, check_arguments, since


class DotProductAttention(TransformerEngineBaseModule):
    """`[t, heads, d]` of query, key and value give `[t, heads × d]`.

    Under context parallelism t counts this rank's part: of each sequence the chunks r and 2·cp − 1 − r.
    """

    def __init__(self, num_attention_heads: int, kv_channels: int, **options: Any) -> None:
        check_arguments("DotProductAttention", options)
        super().__init__()
        group = options["tp_group"]
        self.tp_size = group.size()
        self.set_tensor_parallel_group(group)
        assert self.tp_size == options["tp_size"]
        assert options["attention_dropout"] == 0.0
        assert options["attention_type"] == "self"
        self.hidden_size_per_attention_head = kv_channels
        self.num_gqa_groups_per_partition = options["num_gqa_groups"] // self.tp_size
        assert num_attention_heads % options["num_gqa_groups"] == 0
        self.softmax_scale = options.get("softmax_scale") or 1.0 / math.sqrt(kv_channels)
        if not options["sequence_parallel"]:  # its dropout would draw from the tracker's generator
            options["get_rng_state_tracker"]().get_states()
        self.set_context_parallel_group(
            options.get("cp_group"), options.get("cp_global_ranks"), options.get("cp_stream"),
            options.get("cp_comm_type", "p2p"),
        )  # fmt: skip
        self.register_load_state_dict_post_hook(_pass_over_missing_extra_state)

    def set_context_parallel_group(
        self, cp_group: Any, cp_global_ranks: Any, cp_stream: Any, cp_comm_type: str = "p2p"
    ) -> None:
        self.cp_group = cp_group
        self.cp_size = 1 if cp_group is None else cp_group.size()
        if self.cp_size > 1:
            assert cp_global_ranks == dist.get_process_group_ranks(cp_group)
            assert cp_stream is not None
            assert cp_comm_type in ("p2p", "all_gather", "a2a"), cp_comm_type

    def forward(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        check_arguments("DotProductAttention.forward", options)
        self._check(query_layer, key_layer, value_layer, options)
        assert attention_mask is None
        bounds = options["cu_seqlens_q"].tolist()
        if self.cp_size == 1:
            spans = [(start, end, start, end) for start, end in itertools.pairwise(bounds)]
        else:
            spans, order = _shares(bounds, self.cp_group.rank(), self.cp_size)
            key_layer, value_layer = (
                _Gather.apply(tensor, self.cp_group)[order]  # type: ignore[index]
                for tensor in (key_layer, value_layer)
            )
        parts, first = [], 0
        for start, end, key_start, key_end in spans:
            query = query_layer[first : first + end - start]
            first += end - start
            parts.append(self._attend(query, key_layer[key_start:key_end], value_layer[key_start:key_end]))
        return torch.cat(parts).flatten(1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Queries of the last positions of the keys'; `[t, heads, d]` each."""
        mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        heads_first = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, scale=self.softmax_scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def _check(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> None:
        """What Transformer Engine asserts, and what its kernels take on trust."""
        assert q.dtype == k.dtype == v.dtype
        assert q.dim() == k.dim() == v.dim() == 3, "Queries, keys and values must be 3D for thd"
        assert k.shape == v.shape
        assert q.shape[-1] == k.shape[-1] == self.hidden_size_per_attention_head
        assert k.shape[1] == self.num_gqa_groups_per_partition
        assert options["qkv_format"] == "thd"
        assert options["attn_mask_type"] == "padding_causal", options["attn_mask_type"]
        cu_q, cu_kv = options["cu_seqlens_q"], options["cu_seqlens_kv"]
        assert cu_q.dtype == cu_kv.dtype == torch.int32
        assert cu_q.shape == cu_kv.shape
        assert cu_q.dim() == 1
        lengths = cu_q.diff().tolist()
        assert int(cu_q[-1]) == len(q) * self.cp_size, "cu_seqlens are the whole pack's"
        for name in ("max_seqlen_q", "max_seqlen_kv"):
            # None would be computed: a host sync in every layer
            assert type(options[name]) is int, f"{name} is {options[name]!r}"
            assert options[name] >= max(lengths)
            assert options[name] % (2 * self.cp_size if self.cp_size > 1 else 1) == 0
        padded = options.get("cu_seqlens_q_padded"), options.get("cu_seqlens_kv_padded")
        between = options.get("pad_between_seqs")
        if self.cp_size > 1:
            assert None not in padded, "cu_seqlens_padded cannot be None with CP + THD"
            assert all(length % (2 * self.cp_size) == 0 for length in lengths)
        for tensor in padded:
            if tensor is not None:
                assert torch.equal(tensor, cu_q), "here samples' padding is part of them"
                # up to 2.17 it is found out with torch.equal, which waits for the device, in every layer
                assert between is not None or (since("2.18") and tensor is cu_q), "a host sync in every layer"
        assert not between, "flash-attention 2 would be ruled out"
        calls["DotProductAttention", (self.cp_size, padded[0] is not None, between)] += 1


def _pass_over_missing_extra_state(_module: Any, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if "core_attention._extra_state" not in key
    ]


def _shares(bounds: list[int], rank: int, size: int) -> tuple[list[tuple[int, int, int, int]], torch.Tensor]:
    """Spans of this rank's queries with the keys before them, in the pack; and where each position is
    among all ranks' parts, one after the other."""
    spans, places = [], []
    held = bounds[-1] // size
    for start, end in itertools.pairwise(bounds):
        chunk = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            first = start + number * chunk
            spans.append((first, first + chunk, start, first + chunk))
        for number in range(2 * size):
            owner, half = (number, 0) if number < size else (2 * size - 1 - number, 1)
            places.append(torch.arange(chunk) + owner * held + start // size + half * chunk)
    return spans, torch.cat(places)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return summed(grad, ctx.group, scattered=True), None
