"""The table of objectives that have names; the decorator `register` adds a loss function to it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from megatron_probsft.objectives.objective import ARGUMENTS, Loss, Objective, statistics_of


@dataclass(frozen=True)
class Form:
    """A registered loss and the names that it answers to.

    `pattern` is `Name` or `Name-letter[-letter]`, one letter for each number; `example` is such a name.
    """

    pattern: str
    example: str
    function: Loss
    in_range: Callable[..., bool]
    formula: str
    weight: str
    range: str
    citation: str
    keeps: Loss | None

    @property
    def name(self) -> str:
        return self.pattern.split("-")[0]

    @property
    def letters(self) -> list[str]:
        return self.pattern.split("-")[1:]

    def objective(self, name: str, numbers: list[float]) -> Objective:
        """Make the objective `name`, with `numbers` for the letters."""
        parameters = [
            p for p in inspect.signature(self.function).parameters if p not in ("log_p", *ARGUMENTS)
        ]
        values = dict(zip(parameters, numbers, strict=True))
        loss, keeps = partial(self.function, **values), self.keeps and partial(self.keeps, **values)
        return Objective(name, loss, statistics_of(loss), self.formula, self.weight, self.citation, keeps)


FORMS: list[Form] = []


def register(
    pattern: str,
    example: str,
    in_range: Callable[..., bool] = lambda: True,
    keeps: Loss | None = None,
) -> Callable[[Loss], Loss]:
    """Return a decorator that enters a loss function in the table, under `pattern`.

    The function takes log_p, then the statistics it needs, then one number per letter of the pattern. Its
    docstring holds the listing's texts, a line each: `f = …`, `s = …`, `Range: …` (if there are letters) and
    `Source: …`. `in_range` tests the numbers for what `Range` says. `keeps` takes the function's own
    arguments and says which tokens a threshold keeps; None: all are kept.
    """

    def enter(function: Loss) -> Loss:
        texts = dict(re.findall(r"^\s*(f =|s =|Range:|Source:) (.+)$", function.__doc__ or "", re.MULTILINE))
        FORMS.append(
            Form(
                pattern,
                example,
                function,
                in_range,
                formula=texts["f ="],
                weight=texts["s ="],
                range=texts.get("Range:", ""),
                citation=texts["Source:"],
                keeps=keeps,
            )
        )
        return function

    return enter
