"""Packs cut over a context-parallel group: each sequence in 2·cp parts, two of them on each rank.

Rank r holds parts r and 2·cp − 1 − r of every sequence, so that causal attention costs every rank the same
(as Megatron-LM and Transformer Engine cut packs).
"""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel


def local_positions(bounds: list[int], rank: int, size: int) -> torch.Tensor:
    """The rank's positions in the pack, int64 `[pack length / size]`.

    bounds: cu_seqlens, 0 to the pack's length; each sequence's length a multiple of 2 × size.
    """
    parts = []
    for start, end, _ in local_spans(bounds, rank, size):
        parts.append(torch.arange(start, end))
    return torch.cat(parts)


def local_spans(bounds: list[int], rank: int, size: int) -> list[tuple[int, int, int]]:
    """Each span of positions that the rank holds, in order: (first position, end, start of its sequence)."""
    spans = []
    for start, end in itertools.pairwise(bounds):
        part, rest = divmod(end - start, 2 * size)
        assert rest == 0, f"a sequence of {end - start} positions does not divide into {2 * size} parts"
        for index in (rank, 2 * size - 1 - rank):
            spans.append((start + index * part, start + (index + 1) * part, start))
    return spans


def gather_pack(local: torch.Tensor, bounds: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    """The whole pack, `[t, …]` in its order, from every rank's part of it, `[t / cp, …]`.

    Collectives on the group: forward an all-gather, backward a reduce-scatter.
    """
    size = dist.get_world_size(group)
    by_rank = tensor_parallel.gather_from_sequence_parallel_region(local, group=group)
    order = torch.cat([local_positions(bounds, rank, size) for rank in range(size)]).to(local.device)
    return by_rank.index_select(0, order.argsort())
