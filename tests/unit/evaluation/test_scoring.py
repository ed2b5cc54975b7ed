"""Intervals against published numbers and closed forms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from megatron_probsft.evaluation.scoring.intervals import (
    bootstrap_interval,
    interval_of_mean,
    score,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_numbers(successes: int, trials: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 8), (48, 200), (999, 1000), (1, 1)])
def test_wilson_bounds_are_where_the_score_test_just_rejects(successes: int, trials: int) -> None:
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        distance = abs(successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert distance == pytest.approx(NormalDist().inv_cdf(0.975))


def test_one_sample_uses_wilson() -> None:
    accuracy, interval = score([[True], [False], [False], [True]], seed=1)
    assert accuracy == 0.5
    assert interval == wilson_interval(2, 4)


def test_bootstrap_is_the_normal_interval_of_the_problem_means() -> None:
    means = np.random.default_rng(0).integers(0, 5, 400) / 4
    low, high = bootstrap_interval(list(means), seed=1)
    half = 1.959964 * means.std() / math.sqrt(len(means))
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.05 * half)


def test_samples_of_one_problem_are_no_independent_evidence() -> None:
    once = [[index % 2 == 0] for index in range(50)]
    accuracy, (low, high) = score([problem * 16 for problem in once], seed=1)
    assert accuracy == 0.5
    single_low, single_high = score(once, seed=1)[1]
    assert high - low == pytest.approx(single_high - single_low, rel=0.15)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    means = list(np.random.default_rng(0).random(30))
    assert bootstrap_interval(means, seed=1) == bootstrap_interval(means, seed=1)
    assert bootstrap_interval(means, seed=1) != bootstrap_interval(means, seed=2)


def test_the_interval_of_a_mean_holds_the_truth_in_95_of_100_draws() -> None:
    generator = np.random.default_rng(1)
    trials, truths = (30, 40, 100), (0.05, 0.3, 0.6)
    held = 0
    for draw in np.stack([generator.binomial(n, p, 2000) for n, p in zip(trials, truths, strict=True)], 1):
        parts = [(hits / n, wilson_interval(int(hits), n)) for hits, n in zip(draw, trials, strict=True)]
        low, high = interval_of_mean(parts)
        held += low <= sum(truths) / 3 <= high
    assert 0.94 < held / 2000 < 0.965


def test_the_interval_of_a_mean_at_the_ends() -> None:
    nothing = (0.0, wilson_interval(0, 20))
    assert interval_of_mean([nothing]) == nothing[1]
    low, high = interval_of_mean([nothing] * 4)
    assert low == 0
    assert high == pytest.approx(nothing[1][1] / 2)
