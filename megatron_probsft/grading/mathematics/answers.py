"""References of problems, and verdicts that text and numbers alone can give, without algebra.

Everything here takes time about linear in the text; what it cannot decide goes to `judge`'s processes.
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
        text: the answer as the benchmark writes it.
        several: whether it lists several answers; then all of them are asked for, in any order.
        tolerance: how far a number may be off, where the benchmark allows it.
        unit: the benchmark's unit, which an answer may repeat or not.
    """

    text: str
    several: bool = False
    tolerance: float | None = None
    unit: str | None = None

    @classmethod
    def of(cls, text: str) -> MathAnswer:
        """Make the reference of a text: it is `several` if it is a list, which 58,500 is not."""
        return cls(text, len(parts(text, several=False)) > 1)


def normalise(text: str) -> str:
    """Return the text without what has no mathematical meaning: dollars, spaces, sizes, fonts, degrees."""
    return squeezed(canonical(text))


def parts(text: str, *, several: bool) -> list[str]:
    """Return the answers that a text lists; a \\pm gives both, and what is no list, as 1,234 or (1, 2), one.

    With `several` every comma outside of brackets separates, also between digits: "100,200" are two.
    """
    plain = canonical(text)
    return [plain] if is_set(plain) else items(plain, every_comma=several)


@lru_cache(maxsize=65536)
def in_words(text: str) -> bool:
    """Tell whether a reference is words, as \\text{Evelyn}."""
    return word(canonical(text)) is not None


def decide(found: str, answer: MathAnswer) -> bool | None:
    """Tell whether an answer is right, if text and numbers can tell; None if algebra must."""
    if _depth(found) > _DEEPEST:
        return False
    try:
        return Comparison(_Undecided(), answer.tolerance, answer.unit).equal(
            found, answer.text, several=answer.several
        )
    except (_AlgebraNeeded, RecursionError):
        return None


def _depth(text: str) -> int:
    """Return how deeply brackets are nested."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest


class _AlgebraNeeded(Exception):
    pass


class _Undecided:
    """An `Algebra` that decides nothing, for a process without sympy."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        raise _AlgebraNeeded

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        if found == wanted:
            return True
        raise _AlgebraNeeded
