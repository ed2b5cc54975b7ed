"""Problems from the rows of benchmark files, read as a domain reads a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True)
class Question:
    """A question as a row asks it.

    Attributes:
        prompt: the question, which the template is put around.
        answer: the reference, as text.
        id: the benchmark's own, where the row has one.
        details: what grading needs besides, as the options of a choice.
    """

    prompt: str
    answer: str
    id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


type ReadRow = Callable[[dict[str, Any], str], Question]
"""Takes a row and its place, for messages. Raises UserError naming the place."""


def prepared_question(row: dict[str, Any], where: str) -> Question:
    """The question and the truth of a row that `prepare-data` wrote."""
    extra, truth = row.get("extra_info"), row.get("reward_model")
    question = extra.get("question") if isinstance(extra, dict) else None
    answer = truth.get("ground_truth") if isinstance(truth, dict) else None
    for name, value in (("extra_info.question", question), ("reward_model.ground_truth", answer)):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: {name} must be text, got {value!r}")
    return Question(str(question), str(answer))


# Pyarrow is imported late, below: it takes a third of a second, and names alone do without it.


def load_files(
    task: str, hub: Mapping[str, str], read_row: ReadRow, data: Sequence[str], wanted: Sequence[str] | None
) -> list[Problem]:
    """Problems of files that are a benchmark each; a row's data_source names it, else the file does.

    hub, wanted: as for `data_files.rows_of`.
    """
    from megatron_probsft.domains.benchmarks.data_files import rows_of

    problems = []
    for name, index, where, row in rows_of(data, hub, task, wanted):
        found = read_row(row, where)
        benchmark = row["data_source"] if isinstance(row.get("data_source"), str) else name
        problems.append(_problem(benchmark, index, found, where))
    return problems


def load_mixed_files(
    task: str, hub: Mapping[str, str], read_row: ReadRow, data: Sequence[str], wanted: Sequence[str] | None
) -> list[Problem]:
    """Problems of files that may hold several benchmarks: a row's source, or data_source, names its own.

    Raises UserError: what the rows are read with; a wanted benchmark that no row is of.
    """
    from megatron_probsft.domains.benchmarks.data_files import rows_of

    problems: list[Problem] = []
    counts: dict[str, int] = {}
    # A benchmark is known once its row is read, so names are compared here rather than with the files'.
    for name, _, where, row in rows_of(data, hub, task, None):
        benchmark = str(row.get("source") or row.get("data_source") or name)
        index = counts[benchmark] = counts.get(benchmark, -1) + 1
        problems.append(_problem(benchmark, index, read_row(row, where), where))
    for name in wanted or []:
        if name not in counts:
            raise UserError(f"--benchmarks {name} is none of: {', '.join(counts)}")
    return [problem for problem in problems if not wanted or problem.benchmark in wanted]


def _problem(benchmark: str, index: int, found: Question, where: str) -> Problem:
    name = str(index) if found.id is None else found.id
    return Problem(benchmark, name, index, found.prompt, found.answer, where, found.details)
