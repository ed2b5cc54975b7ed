"""What a grader says of a generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """`prediction`: the answer found in the generation; `similarity`: 0 to 1, where the task has one.

    `verdict`: correct, wrong, unparsable or timeout.
    """

    prediction: str | None
    verdict: str
    similarity: float | None = None

    @property
    def correct(self) -> bool:
        return self.verdict == "correct"
