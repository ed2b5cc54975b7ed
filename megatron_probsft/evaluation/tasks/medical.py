"""Medicine: multiple-choice questions; several sources are several benchmarks.

Rows are those of tools/prepare_data.py (extra_info.question, extra_info.options, reward_model.ground_truth),
of the paper's file (prompt, options, answer_idx, source) or of MedQA (question, options, answer_idx).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megatron_probsft.domains.benchmarks.data_files import rows_of
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.grading.choices import chosen
from megatron_probsft.grading.grade import Grade
from megatron_probsft.runtime.errors import UserError

HUB = {"MedQA": "GBaker/MedQA-USMLE-4-options:test"}


def _load(data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
    # A source is known once its row is read, so names are compared here rather than with the files'.
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    for name, _, where, row in rows_of(data, HUB, "medical", None):
        benchmark = str(row.get("source") or row.get("data_source") or name)
        index = counts[benchmark] = counts.get(benchmark, -1) + 1
        prompt, options, letter = _read_row(row, where)
        details = {"options": options}
        named = index if row.get("id") is None else row["id"]
        problems.append(Problem(benchmark, str(named), index, prompt, letter, where, details))
    for name in benchmarks or []:
        if name not in counts:
            raise UserError(f"--benchmarks {name} is none of: {', '.join(counts)}")
    return [problem for problem in problems if not benchmarks or problem.benchmark in benchmarks]


def _read_row(row: dict[str, Any], where: str) -> tuple[str, dict[str, str], str]:
    extra = row.get("extra_info")
    if isinstance(extra, dict):
        prompt, options = extra.get("question"), extra.get("options")
        letter = (row.get("reward_model") or {}).get("ground_truth")
    else:
        prompt, options, letter = row.get("prompt"), row.get("options"), row.get("answer_idx")
    if isinstance(options, str):
        options = json.loads(options) if options.startswith("{") else None
    if not isinstance(options, dict):
        raise UserError(f"{where}: no options (options or extra_info.options, letters with their texts)")
    options = {
        str(key): str(text) for key, text in options.items() if text is not None
    }  # parquet fills with null
    if prompt is None and isinstance(row.get("question"), str):
        prompt = "\n".join([row["question"], *(f"{key}. {text}" for key, text in options.items())])
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: no question (extra_info.question, prompt or question)")
    if any(len(key) != 1 or not key.isupper() for key in options):
        raise UserError(f"{where}: the options must be named by capital letters, got {', '.join(options)}")
    if letter not in options:
        raise UserError(f"{where}: the answer {letter!r} is none of the options {', '.join(options)}")
    return prompt, options, letter


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    grades = []
    for problem, text in zip(problems, texts, strict=True):
        letter = chosen(text, problem.details["options"])
        verdict = "unparsable" if letter is None else "correct" if letter == problem.answer else "wrong"
        grades.append(Grade(letter, verdict))
    return grades


MEDICAL = Task("medical", "medical", 1, 0.0, 8000, _load, _grade)
