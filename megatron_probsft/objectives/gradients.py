"""Operations of losses whose gradients autograd alone would not get right."""

from __future__ import annotations

from typing import Any

import torch


class _Expm1(torch.autograd.Function):
    """Compute exp(x) − 1 `[T]`, and exp(x) as its gradient: torch's own is expm1(x) + 1, 0 for p < 6e-8."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.expm1(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.exp()


def expm1(x: torch.Tensor) -> torch.Tensor:
    """Return exp(x) − 1, whose gradient is exp(x) however small that is."""
    return _Expm1.apply(x)  # type: ignore[return-value]


def with_weight(log_p: torch.Tensor, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Give `loss` the gradient −`weight` with respect to log_p, in place of the one autograd would find."""
    return loss - weight * (log_p - log_p.detach())
