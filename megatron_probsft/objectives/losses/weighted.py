"""Losses with a factor that gets no gradient: most are −w·log p with w fixed, so that s is w.

`entropy`, `collision` and `vocab_size` are those of `objective`.
"""

from __future__ import annotations

import math

import torch

from megatron_probsft.objectives.forms import register
from megatron_probsft.objectives.losses.basic import one_minus_p


@register("DFT", "DFT")
def dft(log_p: torch.Tensor) -> torch.Tensor:
    """f = −[p]·log p, [·] without gradient
    s = p
    Source: DFT, arXiv 2508.05629

    Has the gradient of 1 − p.
    """
    return _weighted(log_p, log_p.exp())


@register("DFT-γ", "DFT-0.5", lambda gamma: 0 <= gamma <= 1e6)
def dft_power(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    """f = −[p^γ]·log p, [·] without gradient
    s = p^γ
    Range: 0 ≤ γ ≤ 1e6 (0 is −log p, 1 is DFT)
    Source: DFT, arXiv 2508.05629, with a power

    Has the gradient of GeneralFamily-γ.
    """
    return _weighted(log_p, (gamma * log_p).exp())


@register("TALR-τ-w", "TALR-0.5-0.01", lambda tau, w: 1e-6 <= tau <= 1e6 and 0 <= w <= 1)
def talr(log_p: torch.Tensor, tau: float, w: float) -> torch.Tensor:
    """f = −[max(p^(1/τ), w)]·log p, [·] without gradient
    s = max(p^(1/τ), w)
    Range: 1e-6 ≤ τ ≤ 1e6, 0 ≤ w ≤ 1
    Source: TALR, arXiv 2509.20758

    The paper takes w = 0.01 and, for τ, the batch's median of a sequence's mean −log p; here τ is fixed.
    """
    return _weighted(log_p, (log_p / tau).exp().clamp(min=w))


@register("CHORD", "CHORD")
def chord_phi(log_p: torch.Tensor) -> torch.Tensor:
    """f = −[p·(1 − p)]·log p, [·] without gradient
    s = p·(1 − p)
    Source: the weight φ of CHORD, arXiv 2508.11408
    """
    return _weighted(log_p, log_p.exp() * -torch.expm1(log_p))


@register("EAFT-a", "EAFT-1", lambda a: 0 < a <= 1e6)
def eaft(log_p: torch.Tensor, entropy: torch.Tensor, vocab_size: int, a: float) -> torch.Tensor:
    """f = −[(H/log V)^a]·log p, [·] without gradient
    s = (H/log V)^a
    Range: 0 < a ≤ 1e6
    Source: EAFT, arXiv 2601.02151v1

    That version divides the entropy of the 20 likeliest tokens by its maximum, log 20 ≈ 3.0 (as does
    LLaMA-Factory; axolotl does not divide). Here both are the whole vocabulary's: s is about 3/log V of that.
    """
    return _weighted(log_p, (entropy / math.log(vocab_size)).clamp(0, 1).pow(a))


@register("DEFT", "DEFT")
def deft(log_p: torch.Tensor, collision: torch.Tensor) -> torch.Tensor:
    """f = (1 − p^α)/α, α = [Σ_v p_v²] without gradient
    s = p^α
    Source: DEFT, arXiv 2602.11424
    """
    return _tempered(log_p, collision)


@register("Cayley", "Cayley")
def cayley(log_p: torch.Tensor) -> torch.Tensor:
    """f = (1 − p^α)/α, α = [max(p/(2 − p), 0.001)] without gradient
    s = p^α
    Source: Cayley-Trans, arXiv 2602.11424
    """
    return cayley_above(log_p, 0)


@register("Cayley-a", "Cayley-0.4", lambda a: 0 <= a <= 1)
def cayley_above(log_p: torch.Tensor, a: float) -> torch.Tensor:
    """f = (1 − p^α)/α, α = [max(a + (1 − a)·p/(2 − p), 0.001)] without gradient
    s = p^α
    Range: 0 ≤ a ≤ 1 (0 is Cayley)
    Source: Cayley-Trans, arXiv 2602.11424

    The authors' code takes for a half the mean p of the micro-batch; here a is fixed.
    """
    p = log_p.exp()
    return _tempered(log_p, (a + (1 - a) * p / (2 - p)).clamp(min=1e-3))


@register("IDFT-l-h", "IDFT-0.1-2", lambda low, high: 0 <= low <= high <= 1e6)
def idft(log_p: torch.Tensor, entropy: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """f = −[p^γ]·log p, γ = 1/(p·e^H) kept within l and h, [·] without gradient
    s = p^γ
    Range: 0 ≤ l ≤ h ≤ 1e6
    Source: IDFT, arXiv 2602.12222

    The authors' code takes l = 0.1, h = 2 (and may anneal γ from 1, which is not done here).
    """
    gamma = (-log_p - entropy).exp().clamp(low, high)
    return _weighted(log_p, (gamma * log_p).exp())


def _weighted(log_p: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return -weight.detach() * log_p


def _tempered(log_p: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return (1 − p^α)/α with α `[T]` > 0 fixed."""
    alpha = alpha.detach()
    return one_minus_p(alpha * log_p) / alpha
