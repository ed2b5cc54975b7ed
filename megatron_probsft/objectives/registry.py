"""From an objective's name to a differentiable function of log p.

Names parse as in the public code of "Beyond Log Likelihood" (arXiv 2510.00526): `original`, `logp`, `p`,
`GeneralFamily-α`, `OnlyTopP-q`, `OnlyBottomP-q`, `OnlyTopLogP-q`, `OnlyBottomLogP-q`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_probsft.objectives import functions

Loss = Callable[[torch.Tensor], torch.Tensor]


class ObjectiveError(ValueError):
    """An unknown objective name, or a parameter out of its range; the message is one line."""


@dataclass(frozen=True)
class Objective:
    """`loss = objective(log_p)`: `[T]` float32 → `[T]` float32, differentiable, minimised."""

    name: str
    loss: Loss

    def __call__(self, log_p: torch.Tensor) -> torch.Tensor:
        return self.loss(log_p)


@dataclass(frozen=True)
class _Range:
    """Valid parameter values, as a test and in words."""

    letter: str
    words: str
    contains: Callable[[float], bool]


_ALPHA = _Range("α", "finite (0 is −log p)", lambda value: abs(value) < float("inf"))
_TOP = _Range("q", "0 ≤ q < 1", lambda q: 0 <= q < 1)
_BOTTOM = _Range("q", "0 < q ≤ 1", lambda q: 0 < q <= 1)

_PLAIN: dict[str, Loss] = {
    "original": functions.negative_log_likelihood,
    "logp": functions.negative_log_likelihood,
    "p": functions.one_minus_p,
}
_WITH_PARAMETER: dict[str, tuple[_Range, Callable[[float], Loss]]] = {
    "GeneralFamily": (_ALPHA, functions.general_family),
    "OnlyTopP": (_TOP, lambda q: functions.where_p_at_least(q, functions.one_minus_p)),
    "OnlyBottomP": (_BOTTOM, lambda q: functions.where_p_at_most(q, functions.one_minus_p)),
    "OnlyTopLogP": (_TOP, lambda q: functions.where_p_at_least(q, functions.negative_log_likelihood)),
    "OnlyBottomLogP": (_BOTTOM, lambda q: functions.where_p_at_most(q, functions.negative_log_likelihood)),
}


def get_objective(name: str) -> Objective:
    """Parse `name` or `name-parameter`, e.g. `original`, `GeneralFamily-8`, `OnlyTopP-0.2`.

    A negative α is written with its own sign: `GeneralFamily--0.5`.

    Raises:
        ObjectiveError: the name is unknown (the nearest right ones are suggested), the parameter is
            missing, not a number, not wanted, or out of its range.
    """
    if name in _PLAIN:
        return Objective(name, _PLAIN[name])
    family, dash, text = name.partition("-")
    if family in _PLAIN:
        raise ObjectiveError(f"objective {family!r} takes no parameter, got {name!r}")
    if family not in _WITH_PARAMETER:
        raise ObjectiveError(_unknown(name))
    valid, build = _WITH_PARAMETER[family]
    if not dash or not text:
        raise ObjectiveError(
            f"objective {family!r} needs a parameter: {family}-{valid.letter} with {valid.words}"
        )
    try:
        value = float(text)
    except ValueError:
        raise ObjectiveError(f"objective {name!r}: {text!r} is not a number ({valid.words})") from None
    if not valid.contains(value):
        raise ObjectiveError(f"objective {name!r}: {valid.letter} = {text} is out of range ({valid.words})")
    return Objective(name, build(value))


def _unknown(name: str) -> str:
    known = [*_PLAIN, *(f"{family}-{valid.letter}" for family, (valid, _) in _WITH_PARAMETER.items())]
    family = name.partition("-")[0].lower()
    stems = {key.partition("-")[0].lower(): key for key in known}
    near = [stems[stem] for stem in difflib.get_close_matches(family, stems, n=2, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown objective {name!r}; {hint}known: {', '.join(known)}"
