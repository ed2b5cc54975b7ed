"""Losses of the tokens whose p lies in an interval; the other tokens are left out."""

from __future__ import annotations

import torch

from megatron_probsft.objectives.forms import register
from megatron_probsft.objectives.losses.basic import one_minus_p


def _inside(log_p: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Tell which tokens have a ≤ p ≤ b; the thresholds get no gradient."""
    p = log_p.detach().exp().clamp(max=1)  # log p may round to just above 0
    # torch compares in float32, so that p equal to a threshold as float32 holds it is inside.
    return ((p >= a) & (p <= b)) | p.isnan()  # a NaN is in no interval, and must show


def _from(log_p: torch.Tensor, q: float) -> torch.Tensor:
    return _inside(log_p, q, 1)


def _up_to(log_p: torch.Tensor, q: float) -> torch.Tensor:
    return _inside(log_p, 0, q)


def _where(kept: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    # Not multiplication: f may be infinite outside.
    return torch.where(kept, loss, torch.zeros_like(loss))


@register("OnlyTopP-q", "OnlyTopP-0.2", lambda q: 0 <= q < 1, keeps=_from)
def only_top_p(log_p: torch.Tensor, q: float) -> torch.Tensor:
    """f = (1 − p)·1[p ≥ q]
    s = p·1[p ≥ q]
    Range: 0 ≤ q < 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_from(log_p, q), one_minus_p(log_p))


@register("OnlyBottomP-q", "OnlyBottomP-0.5", lambda q: 0 < q <= 1, keeps=_up_to)
def only_bottom_p(log_p: torch.Tensor, q: float) -> torch.Tensor:
    """f = (1 − p)·1[p ≤ q]
    s = p·1[p ≤ q]
    Range: 0 < q ≤ 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_up_to(log_p, q), one_minus_p(log_p))


@register("OnlyIntervalP-a-b", "OnlyIntervalP-0.3-0.7", lambda a, b: 0 <= a < b <= 1, keeps=_inside)
def only_interval_p(log_p: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """f = (1 − p)·1[a ≤ p ≤ b]
    s = p·1[a ≤ p ≤ b]
    Range: 0 ≤ a < b ≤ 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_inside(log_p, a, b), one_minus_p(log_p))


@register("OnlyTopLogP-q", "OnlyTopLogP-0.25", lambda q: 0 <= q < 1, keeps=_from)
def only_top_log_p(log_p: torch.Tensor, q: float) -> torch.Tensor:
    """f = −log p·1[p ≥ q]
    s = 1[p ≥ q]
    Range: 0 ≤ q < 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_from(log_p, q), -log_p)


@register("OnlyBottomLogP-q", "OnlyBottomLogP-0.6", lambda q: 0 < q <= 1, keeps=_up_to)
def only_bottom_log_p(log_p: torch.Tensor, q: float) -> torch.Tensor:
    """f = −log p·1[p ≤ q]
    s = 1[p ≤ q]
    Range: 0 < q ≤ 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_up_to(log_p, q), -log_p)


@register("OnlyIntervalLogP-a-b", "OnlyIntervalLogP-0.35-0.75", lambda a, b: 0 <= a < b <= 1, keeps=_inside)
def only_interval_log_p(log_p: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """f = −log p·1[a ≤ p ≤ b]
    s = 1[a ≤ p ≤ b]
    Range: 0 ≤ a < b ≤ 1
    Source: arXiv 2510.00526 eq. 4
    """
    return _where(_inside(log_p, a, b), -log_p)


@register("ProFit-τ", "ProFit-0.1", lambda tau: 0 <= tau < 1, keeps=lambda log_p, tau: _from(log_p, tau))
def profit(log_p: torch.Tensor, tau: float) -> torch.Tensor:
    """f = −log p·1[p ≥ τ]
    s = 1[p ≥ τ]
    Range: 0 ≤ τ < 1
    Source: ProFit, arXiv 2601.09195

    The same function as OnlyTopLogP: the papers differ in what they divide by, which is not the loss's part.
    """
    return _where(_from(log_p, tau), -log_p)
