"""Losses from the literature that are smooth functions of p alone, stable from p → 0 to p → 1."""

from __future__ import annotations

import math

import torch

from megatron_probsft.objectives.forms import register
from megatron_probsft.objectives.gradients import expm1, with_weight
from megatron_probsft.objectives.losses.basic import one_minus_p


@register("LogOneMinusP-ε", "LogOneMinusP-0.1", lambda epsilon: 1e-6 <= epsilon <= 1)
def log_one_minus_p(log_p: torch.Tensor, epsilon: float) -> torch.Tensor:
    """f = log(1 + (1 − p)/ε)
    s = p/(1 − p + ε)
    Range: 1e-6 ≤ ε ≤ 1
    Source: arXiv 2510.00526, with ε

    The paper's log(1 − p) has s = p/(1 − p), without a limit as p → 1; f is log(1 − p + ε) plus a constant.
    """
    return torch.log1p(-expm1(log_p) / epsilon)


@register("Brier", "Brier")
def brier(log_p: torch.Tensor) -> torch.Tensor:
    """f = ½·(1 − p)²
    s = p·(1 − p)
    Source: Brier 1950, of the label alone
    """
    return expm1(log_p).square() / 2


@register("Huber-δ", "Huber-0.5", lambda delta: 0 < delta <= 1)
def huber(log_p: torch.Tensor, delta: float) -> torch.Tensor:
    """f = ½·(1 − p)² if 1 − p ≤ δ, else δ·(1 − p − δ/2)
    s = p·min(1 − p, δ)
    Range: 0 < δ ≤ 1
    Source: Huber 1964, of 1 − p
    """
    u = one_minus_p(log_p)
    return torch.where(u <= delta, u.square() / 2, delta * (u - delta / 2))


@register("Focal-γ", "Focal-2", lambda gamma: 0 <= gamma <= 1e6)
def focal(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    """f = −(1 − p)^γ·log p
    s = (1 − p)^γ − γ·p·(1 − p)^(γ − 1)·log p
    Range: 0 ≤ γ ≤ 1e6 (0 is −log p)
    Source: focal loss, arXiv 1708.02002
    """
    x = log_p.detach()
    u = -torch.expm1(x).clamp(max=0)  # log p may round to just above 0
    # −log p/(1 − p) is 1 at p = 1, where autograd of the power gives ∞·0 for γ < 1.
    ratio = torch.where(u > 0, -x / u, torch.ones_like(u))
    power = u.pow(gamma)
    return with_weight(log_p, -power * x, power * (1 + gamma * x.exp() * ratio))


@register("Poly1-ε", "Poly1-2", lambda epsilon: -1 <= epsilon <= 1e6)
def poly_1(log_p: torch.Tensor, epsilon: float) -> torch.Tensor:
    """f = −log p + ε·(1 − p)
    s = 1 + ε·p
    Range: −1 ≤ ε ≤ 1e6
    Source: PolyLoss, arXiv 2204.12511
    """
    return -log_p + epsilon * one_minus_p(log_p)


@register("BoundedNLL-b", "BoundedNLL-0.05", lambda b: 1e-30 <= b < 1)
def bounded_nll(log_p: torch.Tensor, b: float) -> torch.Tensor:
    """f = −log((1 − b)·p + b)
    s = (1 − b)·p/((1 − b)·p + b)
    Range: 1e-30 ≤ b < 1
    Source: no paper confirmed

    The likelihood under labels that are noise at rate b; at most −log b, however small p is.
    """
    far = -torch.logaddexp(log_p + math.log1p(-b), log_p.new_tensor(math.log(b)))
    near = -torch.log1p((1 - b) * expm1(log_p.clamp(min=-1)))  # exact as p → 1; −∞ in p → 0 without the clamp
    return torch.where(log_p < math.log(0.5), far, near)


@register("TrSFT-a", "TrSFT-0.1", lambda a: 1e-30 <= a <= 1)
def trust_region(log_p: torch.Tensor, a: float) -> torch.Tensor:
    """f = −log p if p ≥ a, else 1 − p/a − log a
    s = min(1, p/a)
    Range: 1e-30 ≤ a ≤ 1
    Source: TRAPO, arXiv 2512.17636

    The paper gives the gradient, 1/max(p, a) in place of 1/p, with a = 0.1; f is the loss that has it.
    """
    log_a = math.log(a)
    attenuated = -log_a - expm1((log_p - log_a).clamp(max=0))
    return torch.where(log_p >= log_a, -log_p, attenuated)
