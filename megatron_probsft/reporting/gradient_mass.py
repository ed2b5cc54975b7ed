"""Computes from which probabilities an objective's gradient comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_probsft.objectives.objective import Objective, ObjectiveError, gradient_weight

_POINTS = 2000  # of each bin


def gradient_mass(objective: Objective, shares: Sequence[float]) -> list[float]:
    """Return the share of Σ s(p) in each of equal bins of p, with s(p) = −f′(p)·p averaged over the bin.

    shares: the share of tokens in each bin; p is taken as even within a bin.

    Raises:
        ObjectiveError: s depends on more than p, is zero on every token, or has no mean over the first bin.
    """
    mass = np.asarray(shares) * mean_weights(objective, len(shares))
    if not mass.sum() > 0:
        raise ObjectiveError(f"no token has a gradient under {objective.name!r}")
    return (mass / mass.sum()).tolist()


def mean_weights(objective: Objective, bins: int) -> np.ndarray:
    """Return the mean of s(p) over each of `bins` equal bins of [0, 1], float64 `[bins]`.

    Raises ObjectiveError, as `gradient_mass`.
    """
    if objective.needs:
        raise ObjectiveError(
            f"{objective.name!r} weighs a token by its {' and '.join(objective.needs)} too, not by p alone"
        )
    weights, finer = (_mean_weights(objective, bins, points) for points in (_POINTS, 4 * _POINTS))
    if abs(finer[0] - weights[0]) > 0.02 * abs(finer[0]):
        raise ObjectiveError(f"s(p) of {objective.name!r} grows too fast towards p = 0 for a mean over a bin")
    return finer


def _mean_weights(objective: Objective, bins: int, points: int) -> np.ndarray:
    middles = (np.arange(points) + 0.5) / points
    within, density = np.tile(middles, (bins, 1)), np.ones((bins, points))
    within[0], density[0] = middles**4, 4 * middles**3  # denser towards p = 0, where s may have a pole
    p = (np.arange(bins)[:, None] + within) / bins
    log_p = torch.from_numpy(np.log(p).ravel()).float()
    weights = gradient_weight(objective, log_p).double().numpy().reshape(p.shape)
    return (weights * density).mean(1)
