"""From an objective's name to a differentiable function of log p.

The names of the public code of "Beyond Log Likelihood" (arXiv 2510.00526) parse as there: `original`, `logp`,
`p`, `GeneralFamily-α`, `OnlyTopP-q`, `OnlyBottomP-q`, `OnlyTopLogP-q`, `OnlyBottomLogP-q`. All names, with
their formulas: `python -m megatron_probsft.objectives`.
"""

from __future__ import annotations

import difflib
import re

from megatron_probsft.objectives import functions, weighted  # noqa: F401  (imported to register)
from megatron_probsft.objectives.check import check_objective, hidden_threshold
from megatron_probsft.objectives.families import FAMILIES, Family
from megatron_probsft.objectives.objective import (
    STATISTICS,
    Objective,
    ObjectiveError,
    gradient_weight,
    with_statistic,
)
from megatron_probsft.objectives.user_functions import user_objective

__all__ = [
    "STATISTICS", "Objective", "ObjectiveError", "get_objective", "gradient_weight", "hidden_threshold",
    "with_statistic",
]  # fmt: skip

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)(?=-|$)", re.IGNORECASE)

# Known only to be refused with the reason: s = p·(1 + log p) < 0 for p < 1/e.
_P_LOG_P = Objective("PLogP", lambda log_p: -log_p.exp() * log_p)


def get_objective(name: str) -> Objective:
    """Parse `Name` or `Name-number[-number]`, e.g. `original`, `GeneralFamily-8`, `TALR-0.5-0.01`.

    Numbers carry their own sign and may have an exponent: `GeneralFamily--0.5`, `GeneralFamily-1e-6`. A name
    with a colon, `package.module:function`, is a user's own function (`user_functions.user_objective`).

    Raises:
        ObjectiveError: the name is unknown (the nearest right ones are suggested); a number is missing, not a
            number, not wanted, or out of its range; the user's function cannot be used.
    """
    if ":" in name:
        return user_objective(name)
    if name == _P_LOG_P.name:
        check_objective(_P_LOG_P, "stop the gradient of the factor, p.detach(), which is the objective DFT")
    stem, dash, text = name.partition("-")
    forms = [family for family in FAMILIES if family.name == stem]
    if not forms:
        raise ObjectiveError(_unknown(name))
    longest = max(forms, key=lambda family: len(family.letters))
    if dash and not longest.letters:
        raise ObjectiveError(f"objective {stem!r} takes no parameter, got {name!r}")
    texts = _numbers(name, text, longest) if text else []
    family = next((family for family in forms if len(family.letters) == len(texts)), None)
    if family is None or (dash and not text):
        raise ObjectiveError(_wrong_count(longest, len(texts)))
    numbers = [float(number) for number in texts]
    if not family.in_range(*numbers):
        values = ", ".join(f"{letter} = {text}" for letter, text in zip(family.letters, texts, strict=True))
        raise ObjectiveError(f"objective {name!r}: {values} is out of range ({family.range})")
    return family.objective(name, numbers)


def _numbers(name: str, text: str, family: Family) -> list[str]:
    """Split at the dashes between numbers, not at those inside."""
    numbers, position = [], 0
    while position <= len(text):
        match = _NUMBER.match(text, position)
        if match is None:
            raise ObjectiveError(f"objective {name!r}: {text[position:]!r} is not a number ({family.range})")
        numbers.append(match.group())
        position = match.end() + 1
    return numbers


def _wrong_count(family: Family, got: int) -> str:
    count = len(family.letters)
    wanted = "a parameter" if count == 1 else f"{count} parameters"
    hint = f"{family.pattern} with {family.range}, e.g. {family.example}"
    if got < count:
        return f"objective {family.name!r} needs {wanted}: {hint}"
    return f"objective {family.name!r} takes {wanted}, got {got}: {hint}"


def _unknown(name: str) -> str:
    stem = name.partition("-")[0].lower()
    near = difflib.get_close_matches(stem, [family.name.lower() for family in FAMILIES], n=2, cutoff=0.5)
    meant = [family.pattern for family in FAMILIES if family.name.lower() in near]
    hint = f"did you mean {' or '.join(meant)}? " if near else ""
    known = ", ".join(family.pattern for family in FAMILIES)
    return f"unknown objective {name!r}; {hint}known: {known}, package.module:function"
