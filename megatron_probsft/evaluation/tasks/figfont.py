"""Figlet puzzles: the word in the ASCII art, and nothing else.

accuracy            the generation is the word, to the character
case_insensitive    in any case
jaro_winkler        mean similarity, see `evaluation.similarity`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_probsft.domains.benchmarks.data_files import rows_of
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.grading.grade import Grade
from megatron_probsft.grading.similarity import jaro_winkler
from megatron_probsft.runtime.errors import UserError

HUB = {"figlet_font": "gaotang/figlet_font:test"}


def _load(data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
    problems = []
    for name, index, where, row in rows_of(data, HUB, "figfont", benchmarks):
        extra = row.get("extra_info")
        if not isinstance(extra, dict):
            raise UserError(f"{where}: no extra_info; it has: {', '.join(row)}")
        for key in ("question", "answer"):
            if not isinstance(extra.get(key), str) or not extra[key].strip():
                raise UserError(f"{where}: extra_info.{key} must be text, got {extra.get(key)!r}")
        benchmark = row["data_source"] if isinstance(row.get("data_source"), str) else name
        problems.append(Problem(benchmark, str(index), index, extra["question"], extra["answer"], where))
    return problems


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    return [
        Grade(text, "correct" if text == problem.answer else "wrong", jaro_winkler(text, problem.answer))
        for problem, text in zip(problems, texts, strict=True)
    ]


def _more(problems: Sequence[Problem], texts: Sequence[str], grades: Sequence[Grade]) -> dict[str, Any]:
    both = list(zip(problems, texts, strict=True))
    return {
        "case_insensitive": sum(text.lower() == one.answer.lower() for one, text in both) / len(both),
        "jaro_winkler": sum(grade.similarity or 0.0 for grade in grades) / len(grades),
    }


FIGFONT = Task("figfont", "figfont", 1, 0.0, 5, _load, _grade, more=_more)
