"""Sample order: every sample once per epoch, wherever the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from megatron_probsft.data.order import sample_indices


def test_every_sample_once_per_epoch() -> None:
    stream = sample_indices(0, 5 * 37, 37, seed=3)
    assert stream.dtype == np.int64
    epochs = stream.reshape(5, 37)
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5, "each epoch has its own order"


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    whole = sample_indices(0, 500, 37, seed=3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        cuts = np.sort(rng.integers(0, 501, size=6))
        parts = [sample_indices(int(a), int(b - a), 37, seed=3) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[cuts[0] : cuts[-1]])


def test_seeds_differ_and_the_callers_changes_stay_his() -> None:
    first = sample_indices(0, 37, 37, seed=3)
    assert not np.array_equal(first, sample_indices(0, 37, 37, seed=4))
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(sample_indices(0, 37, 37, seed=3), kept)


def test_the_order_is_uniform() -> None:
    firsts = np.array([sample_indices(epoch * 5, 1, 5, seed=0)[0] for epoch in range(2000)])
    assert np.bincount(firsts, minlength=5).min() > 320  # 400 expected, σ = 18


def test_the_order_never_changes_between_versions() -> None:
    """A run resumed with another NumPy or another release must go on in the same order."""
    assert sample_indices(5, 10, 8, seed=1234).tolist() == [1, 2, 0, 2, 0, 7, 6, 1, 4, 5]


def test_without_shuffling() -> None:
    assert sample_indices(3, 7, 4, seed=0, shuffle=False).tolist() == [3, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (-1, 1, 5, 0), (0, -1, 5, 0), (0, 1, 5, -1)])
def test_impossible_arguments(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such samples"):
        sample_indices(*arguments)
