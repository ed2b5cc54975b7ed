"""A step's samples are put into equal packs for all data-parallel ranks; a pack becomes a micro-batch."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_probsft.data.store.token_store import TokenStore

IGNORED = -100


@dataclass(frozen=True)
class StepPlan:
    """The packs of a step, as positions into the step's samples, and the packs' lengths.

    packs[rank][micro_batch] holds ascending positions, possibly none; lengths[rank][micro_batch] is what the
    pack is padded to, and pack_length the longest of these.
    """

    packs: list[list[list[int]]]
    lengths: list[list[int]]

    @property
    def pack_length(self) -> int:
        return max(map(max, self.lengths))


def plan_step(
    lengths: np.ndarray, dp_size: int, capacity: int, align: int = 1, microbatch_multiple: int = 1
) -> StepPlan:
    """Partition a step's samples, whole, into packs, as a pure function of the arguments.

    `lengths` int `[n]`: each sample's positions, its tokens − 1. Every rank gets the same number of packs, a
    multiple of `microbatch_multiple` and as few as packs of `capacity` permit; then the longest pack is made
    as short as can be found. All get its length, rounded up to a multiple of `align`. So all packs
    cost the same but for attention, whose squares are balanced over ranks, and over their n-th packs.

    Raises ValueError: a sample longer than `capacity`, or an argument below 1.
    """
    if min(dp_size, capacity, align, microbatch_multiple) < 1 or min(lengths, default=1) < 1:
        raise ValueError(f"not positive: {dp_size=} {capacity=} {align=} {microbatch_multiple=} or a length")
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a sample of {max(lengths)} positions does not fit a pack of {capacity}")
    sizes: list[int] = np.asarray(lengths).tolist()
    descending = [(sizes[i], i) for i in np.argsort(-np.asarray(lengths), kind="stable").tolist()]

    unit = dp_size * microbatch_multiple
    packs = _best_fit(descending, capacity)
    count = max(1, -(-len(packs) // unit)) * unit
    fewest = max(1, -(-fewest_packs(np.sort(lengths), capacity) // unit)) * unit
    for fewer in range(fewest, count, unit):
        spread = _longest_to_emptiest(descending, fewer)
        if _longest(spread, sizes) <= capacity:
            packs, count = spread, fewer
            break
    packs = _shorten(packs, descending, sizes, count)
    pack_length = max(1, -(-_longest(packs, sizes) // align)) * align

    packs += [[] for _ in range(count - len(packs))]
    ranks = _deal(packs, sizes, dp_size, pack_length)
    return StepPlan(ranks, [[pack_length] * len(rank) for rank in ranks])


def plan_unpacked(
    lengths: np.ndarray, dp_size: int, micro_batch_size: int, align: int = 1, microbatch_multiple: int = 1
) -> StepPlan:
    """Put `micro_batch_size` samples into each micro-batch, in the order given, padded to the longest.

    Every rank gets the same number of micro-batches, a multiple of `microbatch_multiple`.
    A length is the number of samples × the longest one's length rounded up to a multiple of `align`.
    """
    unit = dp_size * micro_batch_size * microbatch_multiple
    each = max(1, -(-len(lengths) // unit)) * microbatch_multiple
    starts = np.arange(dp_size * each).reshape(dp_size, each) * micro_batch_size
    packs = [
        [[*range(start, min(start + micro_batch_size, len(lengths)))] for start in row]
        for row in starts.tolist()
    ]

    def padded(pack: list[int]) -> int:
        longest = max((int(lengths[sample]) for sample in pack), default=1)
        return max(len(pack), 1) * -(-longest // align) * align

    return StepPlan(packs, [[padded(pack) for pack in row] for row in packs])


def make_microbatch(
    store: TokenStore, indices: Sequence[int], pack_length: int, sample_multiple: int = 1
) -> dict[str, np.ndarray | int]:
    """Return one pack as arrays; `indices` are the data set indices of its samples.

    tokens int64 `[pack_length]`: the samples' inputs, `tokens[:-1]`, then zeros. labels int64
    `[pack_length]`: the same sample's next token where that is trained, else −100. position_ids int64
    `[pack_length]`: from 0 in each sample and in the padding. cu_seqlens int32 `[k + 1]`: where samples
    start, from 0 to pack_length; padding, if any, is the last segment. max_seqlen: the longest segment.
    weights float32 `[pack_length]`, of the labels, where the store has weights.
    Each sample is padded at its end to a multiple of `sample_multiple`, which must divide `pack_length`.

    Raises ValueError if the samples do not fit.
    """
    tokens = np.zeros(pack_length, np.int64)
    labels = np.full(pack_length, IGNORED, np.int64)
    weights = None if store.weights is None else np.zeros(pack_length, np.float32)
    ends = [0]
    for index in indices:
        sample, trained = store.sample(index)
        start, end = ends[-1], ends[-1] + len(sample) - 1
        if end > pack_length:
            raise ValueError(f"samples {list(indices)} do not fit a pack of {pack_length} positions")
        tokens[start:end] = sample[:-1]
        labels[start:end] = np.where(trained[1:], sample[1:], IGNORED)
        if weights is not None:
            weights[start:end] = store.weights_of(index)[1:]
        ends.append(start + -(-(end - start) // sample_multiple) * sample_multiple)
    if ends[-1] < pack_length:
        ends.append(pack_length)
    cu_seqlens = np.asarray(ends, np.int32)
    segments = np.diff(cu_seqlens)
    position_ids = np.arange(pack_length) - np.repeat(cu_seqlens[:-1].astype(np.int64), segments)
    return {
        "tokens": tokens,
        "labels": labels,
        "position_ids": position_ids,
        "cu_seqlens": cu_seqlens,
        "max_seqlen": int(segments.max()),
        **({} if weights is None else {"weights": weights}),
    }


def _deal(packs: list[list[int]], sizes: list[int], dp_size: int, pack_length: int) -> list[list[list[int]]]:
    """Deal each rank as many packs, the costliest first, always to the rank with the least attention."""
    squares = [  # the padding's too, which attends to itself
        sum(sizes[s] ** 2 for s in pack) + (pack_length - _sum(pack, sizes)) ** 2 for pack in packs
    ]
    ranks: list[list[list[int]]] = [[] for _ in range(dp_size)]
    open_ranks = [(0, rank) for rank in range(dp_size)]
    for place in sorted(range(len(packs)), key=lambda place: (-squares[place], sorted(packs[place]))):
        cost, rank = heapq.heappop(open_ranks)
        ranks[rank].append(sorted(packs[place]))
        if len(ranks[rank]) < len(packs) // dp_size:
            heapq.heappush(open_ranks, (cost + squares[place], rank))
    return ranks


def fewest_packs(ascending: np.ndarray, capacity: int) -> int:
    """Return a lower bound on the packs needed (Martello and Toth's L2).

    For any s: of the samples of at least s, those over capacity − s are alone, and those over half the
    capacity are each in another pack, whose room the rest may use.
    """
    before = np.concatenate([[0], np.cumsum(ascending)])
    half = np.searchsorted(ascending, capacity // 2, "right")
    smallest = np.unique(np.append(ascending[:half], 0))
    first = np.searchsorted(ascending, smallest, "left")
    alone = np.searchsorted(ascending, capacity - smallest, "right")
    room = (alone - half) * capacity - (before[alone] - before[half])
    over = before[half] - before[first] - room
    return int(np.max(len(ascending) - half + np.maximum(0, -(-over // capacity))))


def _shorten(
    packs: list[list[int]], descending: list[tuple[int, int]], sizes: list[int], count: int
) -> list[list[int]]:
    """Find at most `count` packs with a short longest one, by binary search on the capacity of best fit."""
    spread = _longest_to_emptiest(descending, count)
    best = min(packs, spread, key=lambda p: _longest(p, sizes))
    high = _longest(best, sizes)
    low = max(-(-sum(sizes) // count), max(sizes, default=0))
    while low < high:
        middle = (low + high) // 2
        tried = _best_fit(descending, middle)
        if len(tried) <= count:
            best, high = tried, _longest(tried, sizes)
        else:
            low = middle + 1
    return best


def _best_fit(descending: list[tuple[int, int]], capacity: int) -> list[list[int]]:
    """Put each sample, longest first, into the fullest pack that still holds it; open packs as needed."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, pack), ascending
    for size, sample in descending:
        place = bisect_left(room, (size, -1))
        if place == len(room):
            free, pack = capacity, len(packs)
            packs.append([])
        else:
            free, pack = room.pop(place)
        packs[pack].append(sample)
        insort(room, (free - size, pack))
    return packs


def _longest_to_emptiest(descending: list[tuple[int, int]], count: int) -> list[list[int]]:
    """Put each sample, longest first, into the emptiest of `count` packs."""
    packs: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, pack) for pack in range(count)]
    for size, sample in descending:
        used, pack = heapq.heappop(sums)
        packs[pack].append(sample)
        heapq.heappush(sums, (used + size, pack))
    return packs


def _sum(pack: list[int], sizes: list[int]) -> int:
    return sum(sizes[sample] for sample in pack)


def _longest(packs: list[list[int]], sizes: list[int]) -> int:
    return max((_sum(pack, sizes) for pack in packs), default=0)
