"""Logits and labels of one shape, the objective's work on them, and what it must give, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.kit.place import WrongError

CHECKED_ROWS = 256
LogProbs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""log p `[T]` float32 of logits `[T, V]` and labels `[T]`."""


@dataclass(frozen=True)
class Errors:
    """The largest differences from float64 in some rows."""

    log_p: float
    """Absolute, in nats."""
    gradient: float
    """Of the logits' gradient, relative to its largest element."""


class LossCase:
    """log p of the labels → Σ w·(1 − p), whose upstream gradients differ from token to token."""

    def __init__(self, tokens: int, vocab: int, dtype: torch.dtype, device: str, *, padding: int = 0) -> None:
        """padding: so many columns after the vocabulary, which would dominate if they were looked at."""
        generator = torch.Generator(device).manual_seed(1)
        self.vocab = vocab
        self.labels = torch.randint(0, vocab, (tokens,), device=device, generator=generator)
        self.weights = torch.rand(tokens, device=device, generator=generator) + 0.5
        self.source = torch.empty(tokens, vocab + padding, dtype=dtype, device=device)
        for rows in self.source.split(1024):  # never all of it in float32
            rows.copy_(torch.randn(rows.shape, device=device, generator=generator) * 2)
        self.source[:, vocab:] = 50
        self.source[::3].scatter_(1, self.labels[::3, None], 12.0)  # p near 1 too
        self.logits = torch.empty_like(self.source)

    def fresh_logits(self) -> torch.Tensor:
        """Return the same memory with the same values: some overwrite them, as ours do."""
        return self.logits.copy_(self.source).detach().requires_grad_()

    def loss(self, log_probs: LogProbs, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (the loss, log p)."""
        log_p = log_probs(logits, self.labels)
        return (-torch.expm1(log_p) * self.weights).sum(), log_p.detach()

    def check(self, log_probs: LogProbs, *, log_p: float, gradient: float) -> Errors:
        """Return the errors of some rows.

        Raises:
            WrongError: they are larger than these tolerances, or padding has a gradient.
        """
        logits = self.fresh_logits()
        loss, found = self.loss(log_probs, logits)
        (grad,) = torch.autograd.grad(loss, logits)
        rows = torch.arange(0, len(self.labels), max(1, len(self.labels) // CHECKED_ROWS), device=grad.device)
        exact = self.source[rows, : self.vocab].double().log_softmax(-1)
        chosen = self.labels[rows, None]
        exact_log_p = exact.gather(1, chosen)
        # d(w·(1 − p)) / dz = −w·p·(onehot − softmax)
        scale = -self.weights[rows, None].double() * exact_log_p.exp()
        expected = exact.exp_().mul_(-scale).scatter_add_(1, chosen, scale)
        errors = Errors(
            (found[rows].double() - exact_log_p[:, 0]).abs().max().item(),
            ((grad[rows, : self.vocab] - expected).abs().max() / expected.abs().max()).item(),
        )
        if not (errors.log_p <= log_p and errors.gradient <= gradient):  # NaN is wrong too
            raise WrongError(f"log p differs by {errors.log_p:.1e}, the gradient by {errors.gradient:.1e}")
        if grad[:, self.vocab :].count_nonzero():
            raise WrongError("columns of padding have a gradient")
        return errors
