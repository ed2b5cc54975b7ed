"""An objective is a loss of log p; it says which statistics it needs, and it has a gradient weight."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Loss = Callable[..., torch.Tensor]

# A loss may ask for these beside log p, `[T]` each, none with a gradient: `entropy` float32, in nats, and
# `collision` float32 = Σ_v p_v², both of the whole softmax; `correct` bool, whether the label is the argmax.
STATISTICS = ("entropy", "collision", "correct")
ARGUMENTS = (*STATISTICS, "vocab_size")  # `vocab_size` is one int


class ObjectiveError(ValueError):
    """A name is no objective, or its function must not be minimised; the message is one line."""


@dataclass(frozen=True)
class Objective:
    """A function that is minimised: `losses = objective(log_p, **statistics)`, `[T]` float32 each.

    `needs` names the statistics, of `ARGUMENTS`, that a caller must hand in; more may come, and are ignored.
    `keeps` takes what `loss` takes and returns `[T]` bool: the tokens inside the threshold, whose number some
    denominators divide by. The loss of the others must be 0. None: every token is kept.
    The texts are for people: f, its gradient weight s(p) = −f′(p)·p, and where it is from.
    """

    name: str
    loss: Loss
    needs: tuple[str, ...] = ()
    formula: str = ""
    weight: str = ""
    citation: str = ""
    keeps: Loss | None = None

    def __call__(self, log_p: torch.Tensor, **statistics: Any) -> torch.Tensor:
        return self.loss(log_p, **{name: statistics[name] for name in self.needs})

    def kept(self, log_p: torch.Tensor, **statistics: Any) -> torch.Tensor:
        """Return `[T]` bool: which tokens are kept, also those whose gradient weight is 0 or rounds to it."""
        if self.keeps is None:
            return torch.ones_like(log_p, dtype=torch.bool)
        return self.keeps(log_p.detach(), **{name: statistics[name] for name in self.needs})


def with_statistic(objective: Objective, statistic: str) -> Objective:
    """Return the same objective with one more of STATISTICS in its needs, which reports want computed."""
    if statistic in objective.needs:
        return objective
    keeps = None if objective.keeps is None else objective.kept
    return dataclasses.replace(objective, loss=objective, keeps=keeps, needs=(*objective.needs, statistic))


def gradient_weight(objective: Objective, log_p: torch.Tensor, **statistics: Any) -> torch.Tensor:
    """Return s = −∂f/∂log p by autograd, with the statistics fixed: `[T]` float32 → `[T]` float32.

    The gradient of f with respect to the logits is s·(softmax − onehot), arXiv 2510.00526 eq. 3.
    """
    leaf = log_p.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(leaf, **statistics).sum(), leaf)
    return -gradient


def statistics_of(loss: Loss) -> tuple[str, ...]:
    """Return the statistics that `loss` asks for: its parameters after `log_p`, by name.

    Other parameters are left alone if they have a default.

    Raises:
        ObjectiveError: the first parameter is not `log_p`, or another one is neither known nor has a default.
    """
    try:
        parameters = list(inspect.signature(loss).parameters.values())
    except (ValueError, TypeError):  # of some functions written in C
        raise ObjectiveError("Python cannot tell its parameters: wrap it in a function of log_p") from None
    if not parameters or parameters[0].name != "log_p":
        raise ObjectiveError("its first parameter must be log_p, the logarithm of the label's probability")
    named = [p for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in named:
        if parameter.name not in ARGUMENTS and parameter.default is parameter.empty:
            raise ObjectiveError(f"unknown statistic {parameter.name!r}; known: {', '.join(ARGUMENTS)}")
    return tuple(parameter.name for parameter in named if parameter.name in ARGUMENTS)
