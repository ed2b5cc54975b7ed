"""The negative log-likelihood, 1 − p, and GeneralFamily, which holds both (arXiv 2510.00526)."""

from __future__ import annotations

import math

import torch

from megatron_probsft.objectives.forms import register
from megatron_probsft.objectives.gradients import expm1

_LARGEST_POWER = math.exp(80)  # of p^α for α < 0: f, 200 nats further out, still fits into float32


@register("logp", "logp")
@register("original", "original")  # decorators run from the bottom up
def negative_log_likelihood(log_p: torch.Tensor) -> torch.Tensor:
    """f = −log p
    s = 1
    Source: negative log-likelihood
    """
    return -log_p


@register("p", "p")
def one_minus_p(log_p: torch.Tensor) -> torch.Tensor:
    """f = 1 − p
    s = p
    Source: arXiv 2510.00526

    −p of the paper, with a constant added so that the loss is ≥ 0.
    """
    return -expm1(log_p)


@register("GeneralFamily-α", "GeneralFamily-8", lambda alpha: abs(alpha) <= 1e6)
def general_family(log_p: torch.Tensor, alpha: float) -> torch.Tensor:
    """f = (1 − p^α)/α
    s = p^α
    Range: |α| ≤ 1e6 (0 is −log p)
    Source: arXiv 2510.00526

    α = 1 is 1 − p; α → 0 is −log p; α < 0 leans away from the prior. Where p^α exceeds e^80 (α < 0, p → 0) f
    goes on linearly in log p, with s = e^80, so that it stays within float32.
    """
    if abs(alpha) < 1e-12:  # equal to the limit in float32
        return -log_p
    if alpha > 0:
        return -expm1(alpha * log_p) / alpha
    knee = 80 / alpha
    beyond = torch.relu(knee - log_p)
    return -expm1(alpha * log_p.clamp(min=knee)) / alpha + _LARGEST_POWER * beyond
