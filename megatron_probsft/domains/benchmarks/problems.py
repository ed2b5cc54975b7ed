"""The questions of a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One question of a benchmark.

    Attributes:
        benchmark: its name in every output.
        id: the benchmark's own where it has one; with the benchmark it names the problem.
        index: of the row in its benchmark, from 0, whatever slice is evaluated.
        prompt: the question, which the template is put around.
        answer: the reference, as text.
        where: file and row, for messages.
        details: what a task needs besides, as the options of a choice.
    """

    benchmark: str
    id: str
    index: int
    prompt: str
    answer: str
    where: str
    details: dict[str, Any] = field(default_factory=dict)


def sample_seed(seed: int, problem: Problem, sample: int) -> int:
    """The seed of one sample of a problem: a shared one would correlate their noise.

    It is below 2^53, which is exact in any JSON, and depends on which problem it is, not on the problem's
    text or place among those evaluated.
    """
    name = f"{seed}/{problem.benchmark}/{problem.id}/{sample}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest())


def check_ids(problems: Sequence[Problem]) -> None:
    """UserError where two problems of a benchmark have one id: their samples would be alike."""
    seen: dict[tuple[str, str], str] = {}
    for problem in problems:
        other = seen.setdefault((problem.benchmark, problem.id), problem.where)
        if other != problem.where:
            raise UserError(f"{problem.where}: the id {problem.id} is that of {other}")


def slice_of(
    problems: Sequence[Problem], start: int | None, end: int | None, limit: int | None
) -> list[Problem]:
    """The rows from `start` to before `end`, of these the first `limit`, of each benchmark."""
    benchmarks: dict[str, list[Problem]] = {}
    for problem in problems:
        benchmarks.setdefault(problem.benchmark, []).append(problem)
    kept: list[Problem] = []
    for name, rows in benchmarks.items():
        part = rows[start:end][:limit]
        if not part:
            raise UserError(f"--start {start or 0} is beyond the {len(rows)} problems of {name}")
        kept += part
    return kept
