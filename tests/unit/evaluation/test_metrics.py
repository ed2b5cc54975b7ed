"""pass@k, majority and averages against enumeration; intervals against closed forms."""

from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_probsft.evaluation.scoring.metrics import (
    average_metrics,
    benchmark_metrics,
    majority_is_correct,
    pass_at_k,
    powers_of_two,
    stratified_interval,
)
from megatron_probsft.evaluation.scoring.results import _by_problem


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        grades = [place < correct for place in range(samples)]
        subsets = [any(subset) for subset in itertools.combinations(grades, k)]
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets))


def test_majority_against_a_count() -> None:
    generator = random.Random(1)
    ties = 0
    for _ in range(500):
        keys = [generator.choice(["1", "2", "3", None]) for _ in range(generator.randint(1, 7))]
        correct = [key == "1" for key in keys]
        votes = [key for key in keys if key is not None]
        most = max((votes.count(key) for key in votes), default=0)
        winners = [key for key in votes if votes.count(key) == most]
        ties += len(set(winners)) > 1
        assert majority_is_correct(keys, correct) == (bool(winners) and winners[0] == "1")
    assert ties > 50


def test_right_answers_written_differently_vote_together() -> None:
    assert majority_is_correct(["1/2", "3", "3", "0.50", "2/4"], [True, False, False, True, True])


def test_benchmark_numbers() -> None:
    correct = [[True, False, True, True], [False, False, False, True], [False] * 4]
    keys = [["1", "2", "1", "1"], ["2", "2", "3", "1"], [None, "2", "2", "2"]]
    one = benchmark_metrics(correct, keys, seed=1)
    assert (one["n"], one["samples"]) == (3, 4)
    assert one["accuracy"] == pytest.approx(4 / 12)
    assert one["first_sample_accuracy"] == pytest.approx(1 / 3)
    assert one["majority_at_n"] == pytest.approx(1 / 3)
    assert one["pass_at_k"] == pytest.approx({"1": 4 / 12, "2": (1 + 0.5) / 3, "4": 2 / 3})
    low, high = one["accuracy_ci95"]
    assert 0 <= low < 4 / 12 < high <= 1
    assert list(benchmark_metrics([[True] * 3], [["1"] * 3], seed=1)["pass_at_k"]) == ["1", "2", "3"]


def test_benchmarks_weigh_equally() -> None:
    small = benchmark_metrics([[True]], [["a"]], seed=1)
    large = benchmark_metrics([[False]] * 9, [["b"]] * 9, seed=1)
    average = average_metrics([small, large], [[1.0], [0.0] * 9], seed=1)
    assert average["accuracy"] == average["first_sample_accuracy"] == average["pass_at_k"]["1"] == 0.5
    alone = average_metrics([large], [[0.0] * 9], seed=1)
    assert alone["accuracy_ci95"] == large["accuracy_ci95"]


def test_the_stratified_interval_is_that_of_independent_means() -> None:
    generator = np.random.default_rng(0)
    strata = [list(generator.random(400)), list(generator.random(100) / 4)]
    middle = np.mean([np.mean(stratum) for stratum in strata])
    half = 1.959964 / 2 * math.sqrt(sum(np.var(stratum) / len(stratum) for stratum in strata))
    low, high = stratified_interval(strata, seed=1)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.05 * half)
    assert stratified_interval(strata, seed=1) == (low, high)


def test_powers_of_two() -> None:
    assert [powers_of_two(limit) for limit in (1, 2, 3, 16)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8, 16]]


def test_equal_problems_side_by_side_stay_apart() -> None:
    """A file of one row that is named twice is two problems."""

    def sample(number: int) -> Any:
        return SimpleNamespace(request=SimpleNamespace(sample=number, problem=SimpleNamespace(id="1")))

    assert [len(group) for group in _by_problem([sample(0), sample(0)])] == [1, 1]
    assert [len(group) for group in _by_problem([sample(n) for n in (0, 1, 0, 1)])] == [2, 2]
