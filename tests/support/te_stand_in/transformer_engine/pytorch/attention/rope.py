"""Rotary embedding of packed sequences: angles by position in each, not in the pack."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from transformer_engine.stand_in import calls, check_arguments


def apply_rotary_pos_emb(t: torch.Tensor, freqs: torch.Tensor, **options: Any) -> torch.Tensor:
    """`[t, heads, d]` turned by `freqs` `[longest, 1, 1, d]`; with CP, this rank's two chunks of each."""
    check_arguments("apply_rotary_pos_emb", options)
    assert options["fused"]
    assert options["tensor_format"] == "thd"
    assert options.get("start_positions") is None
    assert not options["interleaved"]
    cu_seqlens, size, rank = options["cu_seqlens"], options["cp_size"], options["cp_rank"]
    assert cu_seqlens.dtype == torch.int32
    assert t.dim() == 3
    assert freqs.dtype == torch.float32
    assert freqs.shape[1:] == (1, 1, t.shape[-1])
    assert freqs.device == t.device == cu_seqlens.device
    positions = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        length = end - start
        if size == 1:
            positions.append(torch.arange(length))
            continue
        chunk = length // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            positions.append(number * chunk + torch.arange(chunk))
    places = torch.cat(positions)
    assert len(places) == len(t), "cu_seqlens are the whole pack's"
    assert int(places.max()) < len(freqs), "angles are too few"
    calls["apply_rotary_pos_emb", size] += 1
    angles = freqs[places].squeeze(1)
    first, second = t.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (t.float() * angles.cos() + turned * angles.sin()).to(t.dtype)
