"""What a task is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.grading.grade import Grade


def prediction_key(grade: Grade) -> Hashable | None:
    """Two samples with equal keys give the same answer."""
    return grade.prediction


def no_more(problems: Sequence[Problem], texts: Sequence[str], grades: Sequence[Grade]) -> dict[str, Any]:
    """No numbers of the task's own."""
    return {}


@dataclass(frozen=True)
class Task:
    """The paper's sampling is a domain's default.

    Attributes:
        domain: names the default template of a model family; None: the tokenizer's chat template.
        load: problems from the --data items (none: from the hub), of the named benchmarks (None: all).
        grade: of a problem and a generation each, its grade.
        key: names a sample's answer for the majority.
        more: numbers of a benchmark beside the common ones.
    """

    name: str
    domain: str | None
    samples: int
    temperature: float
    max_new_tokens: int
    load: Callable[[Sequence[str], Sequence[str] | None], list[Problem]]
    grade: Callable[[Sequence[Problem], Sequence[str]], list[Grade]]
    key: Callable[[Grade], Hashable | None] = prediction_key
    more: Callable[[Sequence[Problem], Sequence[str], Sequence[Grade]], dict[str, Any]] = no_more
