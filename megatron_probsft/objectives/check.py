"""An objective is tried before it is trained on: shapes, dtypes, and that it pushes no label down."""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron_probsft.objectives.objective import Objective, ObjectiveError, gradient_weight
from megatron_probsft.objectives.spread import VOCABULARY, spread_statistics

_REMEDY = "stop the gradient of the factor that causes it, e.g. p.detach()"


def trial_log_p() -> torch.Tensor:
    """Return a grid of log p `[T]` float32 from −200 to 0, both included, denser towards 0."""
    return torch.cat(
        [-torch.logspace(math.log10(200), -8, 2000, dtype=torch.float64), torch.zeros(1)]
    ).float()


def trial_statistics(log_p: torch.Tensor) -> list[dict[str, Any]]:
    """Return statistics as they occur: 1 − p on one other token, on a few, on the whole vocabulary."""
    return [spread_statistics(log_p, others) for others in (1, 31, VOCABULARY - 1)]


def check_objective(objective: Objective, remedy: str = _REMEDY) -> None:
    """Call `objective` on the grid of `trial_log_p`, and refuse it where that shows a mistake.

    Raises:
        ObjectiveError: it raises, returns something else than `[T]` float32 that depends on log_p, or its
            weight s(p) is negative or not finite somewhere.
    """
    log_p = trial_log_p()
    for statistics in trial_statistics(log_p):
        try:
            losses = objective(log_p.clone().requires_grad_(), **statistics)
            _check_output(objective, losses, log_p)
            weight = gradient_weight(objective, log_p, **statistics)
            kept = objective.kept(log_p, **statistics)
        except ObjectiveError:
            raise
        except (Exception, SystemExit) as error:
            raise ObjectiveError(
                f"objective {objective.name!r} fails on a trial call: {one_line(error)}"
            ) from error
        _check_finite(objective, "loss", losses.detach(), log_p)
        _check_finite(objective, "gradient weight", weight, log_p)
        _check_kept(objective, kept, losses.detach(), weight, log_p)
        worst = int(weight.argmin())
        if weight[worst] < -1e-6 * min(1.0, float(weight.abs().max())):  # below the noise of rounding
            raise ObjectiveError(
                f"objective {objective.name!r} has gradient weight s = {float(weight[worst]):.3g} < 0 at"
                f" p = {_p(log_p, worst)}: minimising it would push that label's probability down; {remedy}"
            )


def hidden_threshold(objective: Objective) -> float | None:
    """Return a p where the gradient begins or ends although `keeps` does not say so; None if there is none.

    The number of kept tokens would be wrong there. A weight that underflows fades out first: no threshold.
    """
    log_p = trial_log_p()
    log_p = log_p[(log_p > math.log(1e-6)) & (log_p < math.log(1 - 1e-3))]
    for statistics in trial_statistics(log_p):
        kept = objective.kept(log_p, **statistics)
        weight = gradient_weight(objective, log_p, **statistics)
        without = (weight == 0) & kept
        beside = torch.maximum(weight.roll(1), weight.roll(-1))
        beside[[0, -1]] = 0
        edge = (without & (beside > 1e-30)).nonzero()
        if len(edge):
            return math.exp(float(log_p[int(edge[0])]))
    return None


def one_line(error: BaseException) -> str:
    """Return an exception as `Type: first line of the message`."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _check_output(objective: Objective, losses: Any, log_p: torch.Tensor) -> None:
    if not isinstance(losses, torch.Tensor):
        raise ObjectiveError(
            f"objective {objective.name!r} must return a tensor, not {type(losses).__name__}"
        )
    if losses.shape != log_p.shape or losses.dtype != log_p.dtype:
        raise ObjectiveError(
            f"objective {objective.name!r} must return one float32 loss per token, {list(log_p.shape)};"
            f" got {losses.dtype} {list(losses.shape)}".replace("torch.", "")
        )
    if not losses.requires_grad:
        raise ObjectiveError(f"objective {objective.name!r} has no gradient with respect to log_p")


def _check_kept(
    objective: Objective, kept: Any, losses: torch.Tensor, weight: torch.Tensor, log_p: torch.Tensor
) -> None:
    if not isinstance(kept, torch.Tensor) or kept.shape != log_p.shape or kept.dtype != torch.bool:
        got = (
            f"{kept.dtype} {list(kept.shape)}" if isinstance(kept, torch.Tensor) else type(kept).__name__
        ).replace("torch.", "")
        raise ObjectiveError(
            f"objective {objective.name!r}: keeps must return one bool per token, {list(log_p.shape)};"
            f" got {got}"
        )
    contradicted = (~kept & ((losses != 0) | (weight != 0))).nonzero()
    if len(contradicted):
        index = int(contradicted[0])
        raise ObjectiveError(
            f"objective {objective.name!r}: keeps leaves a token at p = {_p(log_p, index)} out, but there"
            f" f is {float(losses[index]):.3g} and s is {float(weight[index]):.3g}; both must be 0"
        )


def _check_finite(objective: Objective, what: str, values: torch.Tensor, log_p: torch.Tensor) -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        index = int(bad[0])
        raise ObjectiveError(
            f"objective {objective.name!r}: its {what} is {float(values[index])} at p = {_p(log_p, index)};"
            " it must be finite for log p from -200 to 0"
        )


def _p(log_p: torch.Tensor, index: int) -> str:
    return f"{math.exp(float(log_p[index])):.3g}"
