"""Rows of mathematical benchmarks as they are published, told by their keys.

question, final_answer            OlympiadBench: a list; is_multiple_answer, unit, error (the tolerance)
problem or question, answer       MATH-500, AIME, AMC and most others; GSM8K, whose answer ends in "#### N"
problem, solution                 Minerva, MATH: the answer is the solution's last \\boxed{…}
extra_info, reward_model          what `prepare-data` writes, and verl's data: question, ground_truth
"""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_probsft.grading.boxed import boxed
from megatron_probsft.grading.mathematics.answers import MathAnswer, parts
from megatron_probsft.runtime.errors import UserError

_IDS = ("id", "unique_id", "idx")
_GSM8K = re.compile(r"####\s*(\S.*?)\s*$")
_FLOAT = re.compile(r"(-?\d+)\.0+")


def read_row(row: dict[str, Any], where: str) -> tuple[str | None, str, MathAnswer]:
    """The id if the row has one, the question, and the answer. Raises UserError naming the place."""
    question = _question(row, where)
    answer = _answer(row, where)
    if not answer.text.strip():
        raise UserError(f"{where}: the answer is empty")
    name = next((row[key] for key in _IDS if row.get(key) is not None), None)
    return None if name is None else str(name), question, answer


def _question(row: dict[str, Any], where: str) -> str:
    for value, key in (
        (_inside(row, "extra_info", "question"), "extra_info.question"),
        (row.get("problem"), "problem"),
        (row.get("question"), "question"),
    ):
        if value is not None:
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{where}: {key} must be text, got {json.dumps(value)[:60]}")
            return value
    raise UserError(
        f"{where}: no question (problem, question or extra_info.question); it has: {', '.join(row)}"
    )


def _answer(row: dict[str, Any], where: str) -> MathAnswer:
    truth = _inside(row, "reward_model", "ground_truth")
    if truth is not None:
        return _plain(truth, where, "reward_model.ground_truth")
    if row.get("final_answer") is not None:
        return _olympiad(row, where)
    if row.get("answer") is not None:
        return _plain(row["answer"], where, "answer")
    solution = row.get("solution")
    if not isinstance(solution, str):
        raise UserError(
            f"{where}: no answer (final_answer, answer, solution with \\boxed{{}} or "
            f"reward_model.ground_truth); it has: {', '.join(row)}"
        )
    found = boxed(solution)
    if found is None:
        raise UserError(f"{where}: the solution holds no \\boxed{{answer}}")
    return MathAnswer.of(found)


def _olympiad(row: dict[str, Any], where: str) -> MathAnswer:
    answers = row["final_answer"]
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) for one in answers):
        raise UserError(f"{where}: final_answer must be a list of texts, got {json.dumps(answers)[:60]}")
    try:
        tolerance = float(row["error"]) if row.get("error") else None
    except (TypeError, ValueError):
        raise UserError(f"{where}: error must be a number, got {row['error']!r}") from None
    text = ", ".join(answers)
    several = bool(row.get("is_multiple_answer")) and len(parts(text, several=True)) > 1
    return MathAnswer(text, several, tolerance, row.get("unit") or None)


def _plain(value: Any, where: str, key: str) -> MathAnswer:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {key} must be text or a number, got {type(value).__name__}")
    text = str(value)
    if whole := _FLOAT.fullmatch(text):  # amc23 writes 27.0
        text = whole[1]
    if "####" in text:
        marked = _GSM8K.search(text)
        if not marked:
            raise UserError(f"{where}: nothing follows #### in {key}")
        text = marked[1]
    return MathAnswer.of(text)


def _inside(row: dict[str, Any], *keys: str) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
