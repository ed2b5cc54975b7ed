"""Mathematics: the paper's five benchmarks or any in a public layout, judged with math-verify."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from megatron_probsft.domains.benchmarks.data_files import rows_of
from megatron_probsft.domains.benchmarks.math_layouts import read_row
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.grading.grade import Grade
from megatron_probsft.grading.mathematics.answers import normalise
from megatron_probsft.grading.mathematics.judge import judge_math
from megatron_probsft.grading.quantities.numbers import exact_value

HUB = {
    "math_oai": "HuggingFaceH4/MATH-500:test",
    "minerva_math": "math-ai/minervamath:test",
    "olympiadbench": "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train",
    "aime24": "HuggingFaceH4/aime_2024:train",
    "amc23": "math-ai/amc23:test",
}


def _load(data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
    problems = []
    for name, index, where, row in rows_of(data, HUB, "math", benchmarks):
        own_id, question, answer = read_row(row, where)
        benchmark = row["data_source"] if isinstance(row.get("data_source"), str) else name
        details = {"math_answer": answer}
        problems.append(
            Problem(benchmark, own_id or str(index), index, question, answer.text, where, details)
        )
    return problems


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    return judge_math(texts, [problem.details["math_answer"] for problem in problems])


def _key(grade: Grade) -> Hashable | None:
    """0.5 and 1/2 are one answer; of other expressions those that are written alike."""
    if grade.prediction is None:
        return None
    text = normalise(grade.prediction)
    value = exact_value(text)
    return text if value is None else value


MATH = Task("math", "math", 16, 1.0, 4096, _load, _grade, _key)
