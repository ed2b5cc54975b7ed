"""A jsonl file with a prompt and an answer in each row, judged by a named grader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.registry import domains
from megatron_probsft.domains.task import Task, graded_by
from megatron_probsft.grading.graders import get_grader
from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """A user's own problems."""

    file: Path
    grader: str
    prompt_key: str
    answer_key: str

    @property
    def grader_name(self) -> str:
        return self.grader

    def load(self, data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
        """The rows of the file. UserError: a row that cannot be read, or judged; data of another task."""
        for flag, value in (("--data", data), ("--benchmarks", benchmarks)):
            if value:
                *names, last = domains()
                raise UserError(
                    f"{flag} is for --task {', '.join(names)} and {last}: {self.file} is the data"
                )
        problems = read_problems(self.file, self.prompt_key, self.answer_key)
        self.grade(problems, [""] * len(problems))  # refuses unusable answers before the work
        return problems


def file_task(file: Path, grader: str, prompt_key: str, answer_key: str) -> FileTask:
    """The task of this file, greedy unless told otherwise. UserError: an unknown grader."""
    get_grader(grader)
    return FileTask(
        name=str(file), version=None, grade=graded_by(grader), max_new_tokens=64, file=file, grader=grader,
        prompt_key=prompt_key, answer_key=answer_key,
    )  # fmt: skip


def read_problems(file: Path, prompt_key: str, answer_key: str) -> list[Problem]:
    """A problem for each row of a jsonl file. Raises UserError naming file and line."""
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
