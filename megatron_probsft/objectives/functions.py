"""Losses as functions of log p, stable from p → 0 to p → 1.

Each takes log_p `[T]` float32 and returns the loss `[T]` float32. In every docstring s(p) = −f′(p)·p is
the weight on (softmax − onehot) in the gradient with respect to the logits, arXiv 2510.00526 eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Loss = Callable[[torch.Tensor], torch.Tensor]


def negative_log_likelihood(log_p: torch.Tensor) -> torch.Tensor:
    """f = −log p, s = 1."""
    return -log_p


def one_minus_p(log_p: torch.Tensor) -> torch.Tensor:
    """f = 1 − p, s = p. (−p with a constant added, so that the loss is ≥ 0.)"""
    return -_expm1(log_p)


def general_family(alpha: float) -> Loss:
    """f = (1 − p^α)/α, s = p^α. α = 1 is 1 − p; α → 0 is −log p; α < 0 leans away from the prior."""
    if alpha == 0:
        return negative_log_likelihood
    return lambda log_p: -_expm1(alpha * log_p) / alpha


def where_p_at_least(q: float, loss: Loss) -> Loss:
    """f·1[p ≥ q] (arXiv 2510.00526 eq. 4), s = s_f·1[p ≥ q]. The threshold gets no gradient."""
    return lambda log_p: _kept(log_p, log_p.detach().exp() >= _in_float32(q), loss)


def where_p_at_most(q: float, loss: Loss) -> Loss:
    """f·1[p ≤ q] (arXiv 2510.00526 eq. 4), s = s_f·1[p ≤ q]. The threshold gets no gradient."""
    return lambda log_p: _kept(log_p, log_p.detach().exp() <= _in_float32(q), loss)


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


def _kept(log_p: torch.Tensor, keep: torch.Tensor, loss: Loss) -> torch.Tensor:
    # where, not multiplication: f may be infinite outside. A NaN is in no interval, and must show.
    return torch.where(keep | log_p.isnan(), loss(log_p), torch.zeros_like(log_p))


def _in_float32(q: float) -> float:
    """q as float32 holds it: p is float32, and p == q must be inside both intervals."""
    return torch.tensor(q, dtype=torch.float32).item()
