"""Which samples a step sees: a pure function of the seed and of the samples consumed before it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def sample_indices(
    step_first: int, count: int, dataset_size: int, seed: int, shuffle: bool = True
) -> np.ndarray:
    """Data set indices, int64 `[count]`, at the positions from `step_first` on of one endless stream.

    Position k is of epoch k // dataset_size and is that epoch's permutation (identity without `shuffle`) at
    k % dataset_size: every sample once per epoch, however the stream is cut into steps. The permutations
    rest only on the bit stream of PCG64, which NumPy keeps fixed between versions.

    Raises ValueError if dataset_size < 1, or step_first, count or seed < 0.
    """
    if dataset_size < 1 or min(step_first, count, seed) < 0:
        raise ValueError(f"no such samples: {step_first=} {count=} {dataset_size=} {seed=}")
    positions = np.arange(step_first, step_first + count, dtype=np.int64)
    epochs, within = np.divmod(positions, dataset_size)
    if not shuffle:
        return within
    parts = [
        _permutation(dataset_size, seed, int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])


@lru_cache(maxsize=2)  # a step may see the end of one epoch and the start of the next
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64)
