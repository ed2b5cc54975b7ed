"""The parts of the kit, in the order of their worth: a run that is cut off has had the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A module with `rows(place)`: each row's work by its name."""

    name: str
    row_seconds: float
    """A row that takes longer is stopped, and its process with it."""
    apart: bool = False
    """Each row has a process of its own: it takes most of the card, or imports what others must not see."""

    @property
    def module(self) -> str:
        return f"benchmarks.gpu.{self.name}"


PARTS = {
    part.name: part
    for part in (
        Part("machine", 60),
        Part("correctness", 120),
        Part("objective", 100),
        Part("head", 75),
        Part("trainer", 120, apart=True),
        Part("step_profile", 120),
        Part("sanitizer", 120),
    )
}


def wanted_parts(names: Sequence[str] | None) -> list[tuple[Part, str]]:
    """Return the parts that `--only` names, each with the text that its rows' names must have.

    Raises:
        ValueError: there is no such part.
    """
    if names is None:
        return [(part, "") for part in PARTS.values() if part.name != "machine"]
    found = []
    for name in names:
        part, _, text = name.partition(":")
        if part not in PARTS:
            raise ValueError(f"there is no part {part}: use {', '.join(PARTS)}")
        if part != "machine":  # which always runs
            found.append((PARTS[part], text))
    return found
