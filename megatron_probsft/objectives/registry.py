"""Objectives by name: each is a differentiable function of log p.

The names of the public code of "Beyond Log Likelihood" (arXiv 2510.00526) parse as there: `original`, `logp`,
`p`, `GeneralFamily-α`, `OnlyTopP-q`, `OnlyBottomP-q`, `OnlyTopLogP-q`, `OnlyBottomLogP-q`. All names, with
their formulas: `python -m megatron_probsft.objectives`.
"""

from __future__ import annotations

import re

from megatron_probsft.objectives import losses
from megatron_probsft.objectives.check import check_objective, hidden_threshold
from megatron_probsft.objectives.forms import FORMS, Form
from megatron_probsft.objectives.objective import (
    STATISTICS,
    Objective,
    ObjectiveError,
    gradient_weight,
    with_statistic,
)
from megatron_probsft.objectives.user_functions import user_objective
from megatron_probsft.runtime.suggestions import nearest

__all__ = [
    "STATISTICS", "Objective", "ObjectiveError", "get_objective", "gradient_weight", "hidden_threshold",
    "with_statistic",
]  # fmt: skip

losses.import_all()

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)(?=-|$)", re.IGNORECASE)

# Known only to be refused with the reason: s = p·(1 + log p) < 0 for p < 1/e.
_P_LOG_P = Objective("PLogP", lambda log_p: -log_p.exp() * log_p)


def get_objective(name: str) -> Objective:
    """Return the objective of a name, e.g. `original`, `GeneralFamily-8`, `TALR-0.5-0.01`.

    A name is `Name` or `Name-number[-number]`. Numbers carry their own sign and may have an exponent:
    `GeneralFamily--0.5`, `GeneralFamily-1e-6`. A name with a colon, `package.module:function`, is a user's
    own function (`user_functions.user_objective`).

    Raises:
        ObjectiveError: the name is unknown (the nearest right one is suggested); a number is missing, not a
            number, not wanted, or out of its range; the user's function cannot be used.
    """
    if ":" in name:
        return user_objective(name)
    if name == _P_LOG_P.name:
        check_objective(_P_LOG_P, "stop the gradient of the factor, p.detach(), which is the objective DFT")
    stem, dash, text = name.partition("-")
    forms = [form for form in FORMS if form.name == stem]
    if not forms:
        raise ObjectiveError(_unknown(name))
    longest = max(forms, key=lambda form: len(form.letters))
    if dash and not longest.letters:
        raise ObjectiveError(f"objective {stem!r} takes no parameter, got {name!r}")
    texts = _numbers(name, text, longest) if text else []
    form = next((form for form in forms if len(form.letters) == len(texts)), None)
    if form is None or (dash and not text):
        raise ObjectiveError(_wrong_count(longest, len(texts)))
    numbers = [float(number) for number in texts]
    if not form.in_range(*numbers):
        values = ", ".join(f"{letter} = {text}" for letter, text in zip(form.letters, texts, strict=True))
        raise ObjectiveError(f"objective {name!r}: {values} is out of range ({form.range})")
    return form.objective(name, numbers)


def _numbers(name: str, text: str, form: Form) -> list[str]:
    """Split a text at the dashes between its numbers, not at those inside them."""
    numbers, position = [], 0
    while position <= len(text):
        match = _NUMBER.match(text, position)
        if match is None:
            raise ObjectiveError(f"objective {name!r}: {text[position:]!r} is not a number ({form.range})")
        numbers.append(match.group())
        position = match.end() + 1
    return numbers


def _wrong_count(form: Form, got: int) -> str:
    count = len(form.letters)
    wanted = "a parameter" if count == 1 else f"{count} parameters"
    hint = f"{form.pattern} with {form.range}, e.g. {form.example}"
    if got < count:
        return f"objective {form.name!r} needs {wanted}: {hint}"
    return f"objective {form.name!r} takes {wanted}, got {got}: {hint}"


def _unknown(name: str) -> str:
    near = nearest(name.partition("-")[0], [form.name for form in FORMS])
    meant = [form.pattern for form in FORMS if form.name == near]
    hint = f"did you mean {' or '.join(meant)}? " if near else ""
    known = ", ".join(form.pattern for form in FORMS)
    return f"unknown objective {name!r}; {hint}known: {known}, package.module:function"
