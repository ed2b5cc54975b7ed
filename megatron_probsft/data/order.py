"""The samples that a step sees are a pure function of the seed and of the samples consumed before it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np

_MOST_POSITIONS = 1 << 30  # times a share, in units of 2⁻³², fits int64


def sample_indices(step_first: int, count: int, dataset_size: int, seed: int) -> np.ndarray:
    """Return `count` data set indices, int64, at the positions from `step_first` on of one endless stream.

    Position k is of epoch k // dataset_size and is that epoch's permutation at k % dataset_size: every sample
    once per epoch, however the stream is cut into steps. The permutations rest only on the bit stream of
    PCG64, which NumPy keeps fixed between versions.

    Raises ValueError if dataset_size < 1, or step_first, count or seed < 0.
    """
    if dataset_size < 1 or min(step_first, count, seed) < 0:
        raise ValueError(f"no such samples: {step_first=} {count=} {dataset_size=} {seed=}")
    positions = np.arange(step_first, step_first + count, dtype=np.int64)
    return _in_epochs(positions, dataset_size, partial(_permutation, dataset_size, seed))


class Blend:
    """A stream of samples from several sources in given shares, each source in shuffled epochs of its own.

    Like `sample_indices` it is endless and can be entered anywhere.
    """

    def __init__(self, source: np.ndarray, weights: Sequence[float], seed: int) -> None:
        """Make the stream. source: int `[n]`, each sample's; weights: each source's, positive, in any unit.

        Raises ValueError: no weight, one that is not positive, or a source without samples.
        """
        self._members = [np.flatnonzero(source == number) for number in range(len(weights))]
        if not weights or min(weights) <= 0 or min(map(len, self._members)) < 1:
            raise ValueError(f"no such blend: {weights=} of {[len(m) for m in self._members]} samples")
        self._tree = _tree_of(weights)
        # Of each source the two epochs that a step may see, whatever the others are at.
        self._permutations = [
            lru_cache(maxsize=2)(partial(_shuffled, len(members), seed, number + 1))
            for number, members in enumerate(self._members)
        ]

    def sample_indices(self, step_first: int, count: int) -> np.ndarray:
        """Return data set indices, int64 `[count]`, at the positions from `step_first` on.

        Raises ValueError if step_first or count < 0, or beyond 2³⁰ positions.
        """
        sources, draws = self.draws(step_first, count)
        indices = np.empty(count, np.int64)
        for number in np.unique(sources):
            here, members = sources == number, self._members[number]
            indices[here] = members[_in_epochs(draws[here], len(members), self._permutations[number])]
        return indices

    def draws(self, step_first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (source, which draw of that source, from 0), int64 `[count]` each, at these positions.

        In every prefix each source has its share within about one sample.
        """
        if min(step_first, count) < 0 or step_first + count > _MOST_POSITIONS:
            raise ValueError(f"no such samples: {step_first=} {count=}")
        sources, draws = np.empty(count, np.int64), np.empty(count, np.int64)
        work = [(self._tree, np.arange(step_first, step_first + count, dtype=np.int64), np.arange(count))]
        while work:
            node, of_node, places = work.pop()
            if isinstance(node, int):
                sources[places], draws[places] = node, of_node
                continue
            share, left, right = node
            before = _rounded(of_node * share)
            to_left = _rounded((of_node + 1) * share) > before
            work.append((left, before[to_left], places[to_left]))
            work.append((right, (of_node - before)[~to_left], places[~to_left]))
        return sources, draws


# A source; or (left's share in units of 2⁻³², left, right): round(k · share) of its first k draws are left's.
type _Node = int | tuple[int, _Node, _Node]


def _tree_of(weights: Sequence[float]) -> _Node:
    """Build Huffman's tree: joining the lightest first keeps the sum of roundings (half a draw each) low."""
    order = itertools.count()
    heap: list[tuple[float, int, _Node]] = [(float(w), next(order), s) for s, w in enumerate(weights)]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, _, left = heapq.heappop(heap)
        heavy, _, right = heapq.heappop(heap)
        share = round(light / (light + heavy) * 2**32)
        heapq.heappush(heap, (light + heavy, next(order), (share, left, right)))
    return heap[0][2]


def _rounded(units: np.ndarray) -> np.ndarray:
    return (units + (1 << 31)) >> 32


def _in_epochs(draws: np.ndarray, size: int, permutation: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return, for ascending draws k, the permutation of epoch k // size at k % size."""
    epochs, within = np.divmod(draws, size)
    parts = [permutation(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate([np.empty(0, np.int64), *parts])


@lru_cache(maxsize=2)  # a step may see the end of one epoch and the start of the next
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return _argsort(size, [seed, epoch])


def _shuffled(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    return _argsort(size, [seed, epoch, stream])


def _argsort(size: int, entropy: list[int]) -> np.ndarray:
    keys = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64)
