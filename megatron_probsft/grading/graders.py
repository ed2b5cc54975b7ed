"""Are these generations right? Graders by name; a grader is a pure function of generations and answers.

exact    the same text, but for white space at both ends
number   the number that the generation states, in a box or after "answer is", else its last number, equals
         the answer ("1,234.0" equals "1234", "1/2" equals "0.5")
math     the mathematical answer that the generation states equals the reference ("\\boxed{1/2}" and "0.5")

Thoughts up to </think> and what follows the end of the turn are no part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from megatron_probsft.grading.final_text import final_text
from megatron_probsft.grading.grade import Grade
from megatron_probsft.grading.markdown import without_markdown
from megatron_probsft.grading.mathematics.answers import MathAnswer
from megatron_probsft.grading.mathematics.found import stated
from megatron_probsft.grading.mathematics.judge import judge_math
from megatron_probsft.grading.mathematics.notation import canonical, squeezed
from megatron_probsft.grading.mathematics.shapes import items
from megatron_probsft.grading.quantities.numbers import exact_value
from megatron_probsft.grading.quantities.units import quantity
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.suggestions import nearest

# A grader takes equally many generations, answers and places of the answers, which messages name. It raises
# UserError for an answer that nothing could be equal to.
Grader = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Grade]]

_TAIL = 20_000  # characters at the end of a generation in which its last number is looked for
_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_NUMBER = re.compile(  # a minus after a digit, a letter or a bracket is a subtraction
    rf"(?:(?<![\w.)])[-+−])?(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
)
_NUMBER_OR_FRACTION = re.compile(
    rf"(?:(?<![\w.)])[-+−]\s?[$€£])?{_NUMBER.pattern}(?:\s?/\s?[1-9][0-9]{{0,50}}(?![0-9]*[.,][0-9]))?"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9]{1,50})\s*\}\s*\{\s*([0-9]{1,50})\s*\}")
_POWER = re.compile(r"(?<![\w.,)^])([0-9]{1,6})\s?(?:\^|\*\*)\s?\{?([0-9]{1,2})\}?(?![\w^])")
_THIN_SPACES = re.compile(r"(?<=[0-9])(?:[\u00a0\u202f\u2009]|\\,)(?=[0-9]{3}(?![0-9]))")
_DIGITS = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF1A)}  # full width


def get_grader(name: str) -> Grader:
    """Return the grader of this name. Raises UserError for an unknown one, with the nearest."""
    if name not in GRADERS:
        near = nearest(name, GRADERS)
        raise UserError(
            f"--grader {name} is unknown: "
            + (f"did you mean {near}?" if near else f"use one of {', '.join(GRADERS)}")
        )
    return GRADERS[name]


def exact(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    """Grade each generation by whether it is the answer's text."""
    return [
        Grade(text, "correct" if text == answer.strip() else "wrong")
        for text, answer in zip((final_text(one).strip() for one in generations), answers, strict=True)
    ]


def number(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    """Grade each generation by the number that it states."""
    grades = []
    for generation, answer, where in zip(generations, answers, places, strict=True):
        wanted = _NUMBER.fullmatch(answer.strip())
        if not wanted:
            raise UserError(f"{where}: the answer {answer!r} is not a number, which --grader number needs")
        found = _number_in(generation)
        if found is None:
            grades.append(Grade(None, "unparsable"))
        else:
            right = _value(found) == _decimal(wanted.group())
            grades.append(Grade(found, "correct" if right else "wrong"))
    return grades


def math(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    """Grade each generation by the mathematical answer that it states."""
    for answer, where in zip(answers, places, strict=True):
        if not answer.strip():
            raise UserError(f"{where}: the answer is empty")
    return judge_math(generations, [MathAnswer.of(answer) for answer in answers])


GRADERS: dict[str, Grader] = {"exact": exact, "number": number, "math": math}


def _number_in(generation: str) -> str | None:
    """Return the number that a generation states, or its last one; a list where it states several."""
    said = stated(generation, several=False)
    if said is not None:
        text = canonical(said)
        value = squeezed(quantity(text)[0])
        if exact_value(value) is not None:
            return value
        if len(listed := items(text)) > 1 and all(
            exact_value(squeezed(quantity(one)[0])) is not None for one in listed
        ):
            return ", ".join(listed)
        if found := _numbers(said.rpartition("=")[2]):
            return found[0]
    found = _numbers(without_markdown(final_text(generation)[-_TAIL:]))
    return found[-1] if found else None


def _numbers(text: str) -> list[str]:
    """Return the numbers of a text as they are written, "1,234" or "3/4"."""
    text = _THIN_SPACES.sub("", text.translate(_DIGITS).replace("{,}", ",").replace("\\!", ""))
    text = _LATEX_FRACTION.sub(r"\1/\2", _POWER.sub(lambda one: str(int(one[1]) ** int(one[2])), text))
    return [re.sub(r"[$€£\s]", "", one[0]) for one in _NUMBER_OR_FRACTION.finditer(text)]


def _value(text: str) -> Decimal | Fraction | None:
    """Return the exact value of a number as it is written; None for a list of them."""
    if _NUMBER.fullmatch(text):
        return _decimal(text)
    return exact_value(text.replace("−", "-"))


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-"))
