"""Losses that are functions of p alone, stable from p → 0 to p → 1.

Each takes log_p `[T]` float32 and its numbers, and returns the loss `[T]` float32. In every docstring f is
the loss and s(p) = −f′(p)·p its weight on (softmax − onehot) in the gradient with respect to the logits,
arXiv 2510.00526 eq. 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron_probsft.objectives.families import register

_LARGEST_POWER = math.exp(80)  # of p^α for α < 0: f, 200 nats further out, still fits into float32


def _inside(log_p: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Which tokens have a ≤ p ≤ b; the thresholds get no gradient."""
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
    return -_expm1(log_p)


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
        return -_expm1(alpha * log_p) / alpha
    knee = 80 / alpha
    beyond = torch.relu(knee - log_p)
    return -_expm1(alpha * log_p.clamp(min=knee)) / alpha + _LARGEST_POWER * beyond


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


@register("LogOneMinusP-ε", "LogOneMinusP-0.1", lambda epsilon: 1e-6 <= epsilon <= 1)
def log_one_minus_p(log_p: torch.Tensor, epsilon: float) -> torch.Tensor:
    """f = log(1 + (1 − p)/ε)
    s = p/(1 − p + ε)
    Range: 1e-6 ≤ ε ≤ 1
    Source: arXiv 2510.00526, with ε

    The paper's log(1 − p) has s = p/(1 − p), without a limit as p → 1; f is log(1 − p + ε) plus a constant.
    """
    return torch.log1p(-_expm1(log_p) / epsilon)


@register("Brier", "Brier")
def brier(log_p: torch.Tensor) -> torch.Tensor:
    """f = ½·(1 − p)²
    s = p·(1 − p)
    Source: Brier 1950, of the label alone
    """
    return _expm1(log_p).square() / 2


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
    return _with_weight(log_p, -power * x, power * (1 + gamma * x.exp() * ratio))


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
    near = -torch.log1p(
        (1 - b) * _expm1(log_p.clamp(min=-1))
    )  # exact as p → 1; −∞ in p → 0 without the clamp
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
    attenuated = -log_a - _expm1((log_p - log_a).clamp(max=0))
    return torch.where(log_p >= log_a, -log_p, attenuated)


class _Expm1(torch.autograd.Function):
    """exp(x) − 1 whose gradient is exp(x): torch's own takes expm1(x) + 1, which is 0 for p < 6e-8."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.expm1(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.exp()


def _expm1(x: torch.Tensor) -> torch.Tensor:
    return _Expm1.apply(x)  # type: ignore[return-value]


def _with_weight(log_p: torch.Tensor, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`loss` with the gradient −`weight`, for a derivative that autograd would not get right."""
    return loss - weight * (log_p - log_p.detach())
