"""From graded samples to the numbers of a table: mean@n, pass@k, majority@n, intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from megatron_probsft.evaluation.scoring.intervals import interval_of_mean, score, stratified_interval


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate (Chen et al. 2021), from `samples` of a problem, of one of k being right."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_is_correct(keys: Sequence[Hashable | None], correct: Sequence[bool]) -> bool:
    """True if the answer given most often is right; of equally frequent ones, the one that came first.

    Samples with equal keys give the same answer, and so do all correct ones; None is no answer and no vote.
    """
    votes: dict[tuple[bool, Hashable], int] = {}
    for key, right in zip(keys, correct, strict=True):
        if right or key is not None:
            answer = (right, None if right else key)
            votes[answer] = votes.get(answer, 0) + 1
    return bool(votes) and max(votes, key=lambda answer: votes[answer])[0]


def benchmark_metrics(
    correct: Sequence[Sequence[bool]], keys: Sequence[Sequence[Hashable | None]], seed: int
) -> dict[str, Any]:
    """The numbers of a benchmark from its problems' samples, equally many of each; `accuracy` is mean@n.

    correct, keys: for each problem its samples' grades, and keys of their answers.
    """
    samples = len(correct[0])
    accuracy, interval = score(correct, seed)
    return {
        "n": len(correct),
        "samples": samples,
        "accuracy": accuracy,
        "accuracy_ci95": interval,
        "first_sample_accuracy": _mean([one[0] for one in correct]),
        "pass_at_k": {
            str(k): _mean([pass_at_k(samples, sum(one), k) for one in correct])
            for k in sorted({*powers_of_two(samples), samples})
        },
        "majority_at_n": _mean([majority_is_correct(*both) for both in zip(keys, correct, strict=True)]),
    }


def average_metrics(
    benchmarks: Sequence[dict[str, Any]], problem_means: Sequence[Sequence[float]], seed: int
) -> dict[str, Any]:
    """The same numbers averaged over benchmarks, each of equal weight as in the paper's tables.

    The interval is that of the one benchmark; of several with one sample, their intervals put together; else
    a bootstrap that resamples problems within each.
    """
    names = ("accuracy", "first_sample_accuracy", "majority_at_n", "jaro_winkler", "case_insensitive")
    average: dict[str, Any] = {
        name: _mean([one[name] for one in benchmarks]) for name in names if name in benchmarks[0]
    }
    average["pass_at_k"] = {
        k: _mean([one["pass_at_k"][k] for one in benchmarks]) for k in benchmarks[0]["pass_at_k"]
    }
    if len(benchmarks) == 1:
        average["accuracy_ci95"] = benchmarks[0]["accuracy_ci95"]
    elif benchmarks[0]["samples"] == 1:
        average["accuracy_ci95"] = interval_of_mean([(b["accuracy"], b["accuracy_ci95"]) for b in benchmarks])
    else:
        average["accuracy_ci95"] = stratified_interval(problem_means, seed)
    return average


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, … up to `limit`."""
    return [1 << bit for bit in range(limit.bit_length())]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
