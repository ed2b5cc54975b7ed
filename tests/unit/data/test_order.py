"""Sample order: every sample once per epoch, wherever the stream is cut."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from megatron_probsft.data.order import Blend, sample_indices


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


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (-1, 1, 5, 0), (0, -1, 5, 0), (0, 1, 5, -1)])
def test_impossible_arguments(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such samples"):
        sample_indices(*arguments)


def source_of(sizes: list[int]) -> np.ndarray:
    """Of each sample, all mixed up."""
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))


WEIGHTS = [[0.7, 0.3], [3, 1, 1], [1.0], [0.93, *[0.01] * 7], [2.0**-k for k in range(8)], [1] * 8, [1e-3, 1]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_prefix_has_the_shares(weights: list[float]) -> None:
    count = 3000
    source = source_of([5 + number for number in range(len(weights))])
    drawn = source[Blend(source, weights, seed=3).sample_indices(0, count)]
    counts = np.cumsum(drawn[:, None] == np.arange(len(weights)), axis=0)
    ideal = np.arange(1, count + 1)[:, None] * np.asarray(weights) / sum(weights)
    assert np.abs(counts - ideal).max() < 1.3


def test_each_source_is_drawn_in_epochs_of_its_own() -> None:
    sizes = [37, 5, 12]
    source = source_of(sizes)
    stream = Blend(source, [1, 1, 2], seed=3).sample_indices(0, 2000)
    assert stream.dtype == np.int64
    for number, size in enumerate(sizes):
        drawn = stream[source[stream] == number]
        epochs = drawn[: len(drawn) // size * size].reshape(-1, size)
        assert len(epochs) > 10
        assert all(sorted(epoch) == np.flatnonzero(source == number).tolist() for epoch in epochs.tolist())
        assert len({tuple(epoch) for epoch in epochs[:10].tolist()}) > 8


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    source = np.repeat([0, 1], 50)
    stream = Blend(source, [1, 1], seed=3).sample_indices(0, 100)
    first, second = stream[source[stream] == 0], stream[source[stream] == 1] - 50
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Blend(source, [1, 1], seed=4).sample_indices(0, 100)[::2])


def test_a_blend_is_the_same_however_it_is_cut() -> None:
    source = source_of([37, 5, 12])
    whole = Blend(source, [5, 1, 2], seed=3).sample_indices(0, 500)
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = np.sort(rng.integers(0, 501, size=2)).tolist()
        blend = Blend(source, [5, 1, 2], seed=3)
        np.testing.assert_array_equal(blend.sample_indices(a, b - a), whole[a:b])


def test_a_blend_never_changes_between_versions() -> None:
    blend = Blend(np.array([0, 0, 0, 1, 1]), [0.7, 0.3], seed=1234)
    assert blend.sample_indices(5, 10).tolist() == [0, 2, 1, 3, 2, 0, 4, 1, 1, 4]


def test_a_blends_step_takes_under_5_ms() -> None:
    blend = Blend(np.repeat(np.arange(8), 100_000), [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], seed=0)
    blend.sample_indices(10_000_000, 4096)  # shuffles the epochs
    seconds = []
    for step in range(1, 6):
        started = time.perf_counter()
        blend.sample_indices(10_000_000 + step * 4096, 4096)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.005


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, 1, 1]])
def test_impossible_blends(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="no such blend"):
        Blend(np.array([0, 1, 1]), weights, seed=0)


@pytest.mark.parametrize("positions", [(-1, 1), (0, -1), (2**30, 1)])
def test_impossible_positions_of_a_blend(positions: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no such samples"):
        Blend(np.array([0, 1, 1]), [1, 1], seed=0).sample_indices(*positions)
