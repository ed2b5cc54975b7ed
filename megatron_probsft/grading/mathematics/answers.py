"""The reference of a problem, and what text and numbers alone tell about an answer to it.

Everything here takes time about linear in the text; what it cannot decide goes to `math_judge`'s processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from megatron_probsft.grading.mathematics.compare import Comparison
from megatron_probsft.grading.mathematics.notation import canonical, squeezed
from megatron_probsft.grading.mathematics.sets import RealSet, is_set
from megatron_probsft.grading.mathematics.shapes import items, word

_DEEPEST = 60  # nested brackets of an answer: no benchmark's has ten


@dataclass(frozen=True)
class MathAnswer:
    """The reference of a problem.

    Attributes:
        text: as the benchmark has it.
        several: it lists several answers, all of which are asked for, in any order.
        tolerance: absolute, where the benchmark allows one.
        unit: the benchmark's, which an answer may or may not repeat.
    """

    text: str
    several: bool = False
    tolerance: float | None = None
    unit: str | None = None

    @classmethod
    def of(cls, text: str) -> MathAnswer:
        """Several if the text is a list; a number with separators of thousands, as 58,500, is none."""
        return cls(text, len(parts(text, several=False)) > 1)


def normalise(text: str) -> str:
    """The text without what has no mathematical meaning: dollar signs, spaces, sizes, fonts, degrees."""
    return squeezed(canonical(text))


def parts(text: str, *, several: bool) -> list[str]:
    """The answers that a text lists, of a \\pm both; one that is no list, as 1,234 or (1, 2), is whole.

    With `several` every comma outside of brackets separates, also between digits: "100,200" are two.
    """
    plain = canonical(text)
    return [plain] if is_set(plain) else items(plain, every_comma=several)


@lru_cache(maxsize=65536)
def in_words(text: str) -> bool:
    """Whether a reference is words, as \\text{Evelyn}."""
    return word(canonical(text)) is not None


def decide(found: str, answer: MathAnswer) -> bool | None:
    """Whether an answer is right where text and numbers tell; None where algebra has to."""
    if _depth(found) > _DEEPEST:
        return False
    try:
        return Comparison(_Undecided(), answer.tolerance, answer.unit).equal(
            found, answer.text, several=answer.several
        )
    except (_AlgebraNeeded, RecursionError):
        return None


def _depth(text: str) -> int:
    """How deeply brackets are nested."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest


class _AlgebraNeeded(Exception):
    pass


class _Undecided:
    """The algebra of a process that has none."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        raise _AlgebraNeeded

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        if found == wanted:
            return True
        raise _AlgebraNeeded
