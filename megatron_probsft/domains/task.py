"""A task tells an evaluation its problems, how they are sampled, and what counts as right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.grading.grade import Grade

type Grading = Callable[[Sequence[Problem], Sequence[str]], list[Grade]]
"""Takes equally many problems and generations, and gives a grade for each pair."""


def prediction_of(grade: Grade) -> Hashable | None:
    """The answer as it was found in the generation."""
    return grade.prediction


def no_more(problems: Sequence[Problem], texts: Sequence[str], grades: Sequence[Grade]) -> dict[str, Any]:
    """No numbers of the task's own."""
    return {}


def graded_by(name: str) -> Grading:
    """A grading with the grader of that name in `grading/graders.py`."""

    def grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        from megatron_probsft.grading.graders import get_grader  # here: names alone do without it

        return get_grader(name)(texts, [one.answer for one in problems], [one.where for one in problems])

    return grade


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A domain, or a file of the user's own.

    Attributes:
        name: in messages, paths and summary.json.
        version: of the prompts, the reading of rows and the grading together, for summary.json; a file has
            none. It grows with each change after which older scores are not comparable.
        grade: judges generations.
        samples, temperature, max_new_tokens: what is used unless flags say otherwise; temperature 0 is
            greedy.
        majority_key: two samples of a problem with equal keys give the same answer; None is no answer.
        more_metrics: a benchmark's numbers beside those that all tasks have.
    """

    name: str
    version: int | None
    grade: Grading
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int
    majority_key: Callable[[Grade], Hashable | None] = prediction_of
    more_metrics: Callable[[Sequence[Problem], Sequence[str], Sequence[Grade]], dict[str, Any]] = no_more

    @property
    @abstractmethod
    def grader_name(self) -> str:
        """The name of its way of judging, for summary.json."""

    @abstractmethod
    def load(self, data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
        """The problems of the --data items (none: of the hub), of the named benchmarks (None: of all)."""
