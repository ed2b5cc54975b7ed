"""A grade is a grader's verdict on one generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """The verdict on a generation is correct, wrong, unparsable or timeout.

    `prediction` is the answer found in the generation; `similarity` is from 0 to 1, where the task has one.
    """

    prediction: str | None
    verdict: str
    similarity: float | None = None

    @property
    def correct(self) -> bool:
        return self.verdict == "correct"
