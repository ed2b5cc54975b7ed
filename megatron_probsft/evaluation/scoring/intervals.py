"""From graded samples to an accuracy with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def score(correct: Sequence[Sequence[bool]], seed: int) -> tuple[float, tuple[float, float]]:
    """Accuracy and its 95 % interval; `correct` holds, per problem, its samples' grades, equally many.

    The accuracy is the mean over problems and samples. With one sample per problem the interval is Wilson's;
    with several, whose grades depend on each other, problems are resampled: `bootstrap_interval`.
    """
    means = [sum(samples) / len(samples) for samples in correct]
    if max(map(len, correct)) == 1:
        interval = wilson_interval(round(sum(means)), len(means))
    else:
        interval = bootstrap_interval(means, seed)
    return sum(means) / len(means), interval


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval, 95 %, without continuity correction: within [0, 1], no point at 0 of n."""
    p, z2 = successes / trials, Z95 * Z95
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return low, high


def interval_of_mean(parts: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, float]:
    """The 95 % interval of the mean of independent proportions, each given with its own; of one, its own.

    Zou, Huang and Zhang 2009, Computational Statistics & Data Analysis 53: the distances to the limits add
    up as standard deviations do. A bootstrap of nothing but wrong answers would have no width.
    """
    mean = sum(value for value, _ in parts) / len(parts)
    below = math.hypot(*(value - low for value, (low, _) in parts)) / len(parts)
    above = math.hypot(*(high - value for value, (_, high) in parts)) / len(parts)
    return mean - below, mean + above


def bootstrap_interval(means: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean over problems, 95 %; a function of (means, seed)."""
    return stratified_interval([means], seed)


def stratified_interval(
    strata: Sequence[Sequence[float]], seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap, 95 %, of the mean of the strata's means; a function of (strata, seed)."""
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for stratum in strata:
        values = np.asarray(stratum, dtype=float)
        total += [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(total / len(strata), [0.025, 0.975])
    return float(low), float(high)
