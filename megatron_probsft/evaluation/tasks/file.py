"""A jsonl file with a prompt and an answer in each row, judged by a named grader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.grading.grade import Grade
from megatron_probsft.grading.graders import get_grader
from megatron_probsft.runtime.errors import UserError


def file_task(file: Path, grader: str, prompt_key: str, answer_key: str) -> Task:
    """Raises UserError for an unknown grader."""
    grade = get_grader(grader)

    def load(data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
        for flag, value in (("--data", data), ("--benchmarks", benchmarks)):
            if value:
                raise UserError(f"{flag} is for --task math, medical and figfont: {file} is the data")
        problems = read_problems(file, prompt_key, answer_key)
        _grade(problems, [""] * len(problems))  # refuses unusable answers before the work
        return problems

    def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        return grade(texts, [problem.answer for problem in problems], [problem.where for problem in problems])

    return Task(str(file), None, 1, 0.0, 64, load, _grade)


def read_problems(file: Path, prompt_key: str, answer_key: str) -> list[Problem]:
    """Rows of a jsonl file. Raises UserError naming file and line."""
    problems: list[Problem] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON or of UTF-8
                raise UserError(f"{where} is not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} must be a JSON object, got {type(row).__name__}")
            for flag, key in (("--prompt-key", prompt_key), ("--answer-key", answer_key)):
                if key not in row:
                    raise UserError(f"{where} has no key {key!r} ({flag}); it has: {', '.join(row)}")
            prompt, answer = row[prompt_key], row[answer_key]
            if not isinstance(prompt, str):
                raise UserError(f"{where}: {prompt_key!r} must be text, got {type(prompt).__name__}")
            if not isinstance(answer, str | int | float) or isinstance(answer, bool):
                raise UserError(
                    f"{where}: {answer_key!r} must be text or a number, got {type(answer).__name__}"
                )
            index = len(problems)
            problems.append(Problem(file.stem, str(index), index, prompt, str(answer), where))
    if not problems:
        raise UserError(f"--task {file} holds no rows")
    return problems
