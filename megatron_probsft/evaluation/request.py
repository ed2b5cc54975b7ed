"""A request stands for each problem and sample; the graded sample comes of it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.grading.grade import Grade


@dataclass(frozen=True)
class Sampling:
    """The number of generations of each problem, and the way in which they are sampled."""

    samples: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Request:
    """One generation that is asked for.

    Attributes:
        sample: which one of the problem's, from 0.
        prompt: token ids up to where generation starts.
        max_new_tokens: after which it is cut, as many as are asked for or as have room.
        seed: at a temperature above 0 the generation is a function of it.
    """

    problem: Problem
    sample: int
    prompt: list[int]
    max_new_tokens: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Its name in an evaluation: benchmark, problem, sample."""
        return self.problem.benchmark, self.problem.id, self.sample


@dataclass(frozen=True)
class Generation:
    """Tokens, with the one that ended them if finish_reason is "stop"; if "length", they were cut."""

    tokens: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Sample:
    """A request with what was generated for it, as text too, and its grade."""

    request: Request
    generation: Generation
    text: str
    grade: Grade
