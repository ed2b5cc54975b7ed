"""Packs cut over a context-parallel group: each sequence in 2·cp parts, two of them on each rank.

Rank r holds parts r and 2·cp − 1 − r of every sequence, so that causal attention costs every rank the same
(as Megatron-LM and Transformer Engine cut packs).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

Span = tuple[int, int, int]
"""Consecutive positions of a sequence: (first position, end, start of the sequence), counted in the pack."""


def local_positions(bounds: Sequence[int], rank: int, size: int) -> np.ndarray:
    """Return the rank's positions in the pack, int64 `[pack length / size]`.

    bounds: cu_seqlens, 0 to the pack's length; each sequence's length a multiple of 2 × size.
    """
    return np.concatenate([np.arange(start, end) for start, end, _ in local_spans(bounds, rank, size)])


def local_spans(bounds: Sequence[int], rank: int, size: int) -> list[Span]:
    """Return each span of positions that the rank holds, in order; the whole sequences where size is 1."""
    if size == 1:
        return [(start, end, start) for start, end in itertools.pairwise(bounds)]
    spans = []
    for start, end in itertools.pairwise(bounds):
        part, rest = divmod(end - start, 2 * size)
        assert rest == 0, f"a sequence of {end - start} positions does not divide into {2 * size} parts"
        for index in (rank, 2 * size - 1 - rank):
            spans.append((start + index * part, start + (index + 1) * part, start))
    return spans


def gathered_places(bounds: Sequence[int], size: int) -> np.ndarray:
    """Return where each position of the pack lies once all ranks' parts are laid end to end, int64 `[t]`."""
    lengths = np.diff(bounds)
    start = np.repeat(bounds[:-1], lengths)
    part = np.repeat(lengths // (2 * size), lengths)
    index, offset = np.divmod(np.arange(bounds[-1]) - start, part)
    mirrored = index >= size
    rank = np.where(mirrored, 2 * size - 1 - index, index)
    return rank * (bounds[-1] // size) + start // size + part * mirrored + offset


def gather_pack(local: torch.Tensor, places: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return rows of the pack, `[len(places), …]`, from every rank's part of it, `[t / cp, …]`.

    places: `gathered_places`, int64 on local's device, for the pack in its order; or of them those wanted.
    Collectives on the group: forward an all-gather, backward a reduce-scatter.
    """
    by_rank = tensor_parallel.gather_from_sequence_parallel_region(local, group=group)
    return by_rank.index_select(0, places)
