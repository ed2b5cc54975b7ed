"""Are these generations right? Graders by name; a grader is a pure function of generations and answers.

exact    the same text, but for white space at both ends
number   the last number of the generation equals the answer as a number ("1,234.0" equals "1234")
math     math-verify finds an expression in the generation equal to the answer ("\\boxed{1/2}" and "0.5")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from megatron_probsft.evaluation.math_answers import MathAnswer
from megatron_probsft.evaluation.math_judge import judge_math
from megatron_probsft.evaluation.problems import Grade
from megatron_probsft.runtime.errors import UserError

# Of equally many generations, answers and places of the answers, for messages. Raises UserError, naming the
# place, for an answer that nothing could be equal to.
Grader = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Grade]]

_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_NUMBER = re.compile(  # a minus after a digit, a letter or a bracket is a subtraction
    rf"(?:(?<![\w.)])[-+−])?(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
)


def get_grader(name: str) -> Grader:
    if name not in GRADERS:
        near = difflib.get_close_matches(name, GRADERS)
        raise UserError(
            f"--grader {name} is unknown: "
            + (f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(GRADERS)}")
        )
    return GRADERS[name]


def exact(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    return [
        Grade(text.strip(), "correct" if text.strip() == answer.strip() else "wrong")
        for text, answer in zip(generations, answers, strict=True)
    ]


def number(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    grades = []
    for generation, answer, where in zip(generations, answers, places, strict=True):
        wanted = _NUMBER.fullmatch(answer.strip())
        if not wanted:
            raise UserError(f"{where}: the answer {answer!r} is not a number, which --grader number needs")
        found = _NUMBER.findall(generation)
        if not found:
            grades.append(Grade(None, "unparsable"))
        else:
            right = _decimal(found[-1]) == _decimal(wanted.group())
            grades.append(Grade(found[-1], "correct" if right else "wrong"))
    return grades


def math(generations: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[Grade]:
    for answer, where in zip(answers, places, strict=True):
        if not answer.strip():
            raise UserError(f"{where}: the answer is empty")
    return judge_math(generations, [MathAnswer.of(answer) for answer in answers])


GRADERS: dict[str, Grader] = {"exact": exact, "number": number, "math": math}


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-"))
