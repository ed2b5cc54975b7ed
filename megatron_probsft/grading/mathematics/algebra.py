"""Equality of single expressions and of sets of real numbers, with math-verify's parser and sympy."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, FiniteSet, Intersection, Interval, Rational, Reals, Set, Union, oo
from sympy.core.relational import Relational

from megatron_probsft.grading.mathematics import sets as math_sets
from megatron_probsft.grading.mathematics.notation import canonical, squeezed
from megatron_probsft.grading.mathematics.sets import Combined, Points, RealSet
from megatron_probsft.grading.quantities.numbers import equal_numbers, exact_value
from megatron_probsft.grading.quantities.values import equal_values, proportional, same_values

# As math-verify's own, but that units are not dropped: what contradicts must not be lost.
_LATEX = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
)
_ODD_ROOT = re.compile(r"\\sqrt\[(\d?[13579])\]\{ *-([^{}+-]+)\}")


class Unparsable(Exception):
    """The found answer is no mathematics."""


class SympyAlgebra:
    """An `Algebra` that asks math-verify and sympy."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        """Compare by value where both have one, else by math-verify. Raises Unparsable for `found`."""
        one = _parsed(_plain_letters(found))
        if not one:
            raise Unparsable
        two = _parsed(_plain_letters(wanted))
        if not two:
            return False
        first, second = one[0], two[0]
        if isinstance(first, Expr) and isinstance(second, Expr):
            decided = same_values(first, second, found, wanted, tolerance)
            if decided is not None:
                return decided
        if isinstance(first, Eq) and isinstance(second, Eq):
            if first.free_symbols != second.free_symbols:
                return False
            if proportional(first, second):
                return True
        return bool(verify(list(two), list(one), timeout_seconds=None))

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        """Tell whether two sets of real numbers are equal."""
        one, two = _simple_pieces(found), _simple_pieces(wanted)
        if one is not None and two is not None and len(one) == len(two) == 1:
            return self._same_intervals(one[0], two[0])
        first, second = self._set(found), self._set(wanted)
        if first == second:
            return True
        pieces = [_pieces(one) for one in (first, second)]
        if pieces[0] is None or pieces[1] is None:
            return False
        return len(pieces[0]) == len(pieces[1]) and all(
            type(a) is type(b) and self._same_pieces(a, b) for a, b in zip(*pieces, strict=True)
        )

    def _same_intervals(self, one: math_sets.Interval, two: math_sets.Interval) -> bool:
        return one.closed == two.closed and all(
            self._same_ends(a, b) for a, b in zip(one.ends, two.ends, strict=True)
        )

    def _same_ends(self, found: str, wanted: str) -> bool:
        one, two = squeezed(canonical(found)), squeezed(canonical(wanted))
        if one.lstrip("+") == two.lstrip("+"):
            return True
        decided = equal_numbers(one, two)
        return self.same(found, wanted, None) if decided is None else decided

    def _same_pieces(self, one: Any, two: Any) -> bool:
        if isinstance(one, Interval):
            sides = (one.left_open, one.right_open) == (two.left_open, two.right_open)
            return sides and equal_values(one.start, two.start) and equal_values(one.end, two.end)
        return len(one) == len(two) and all(
            equal_values(a, b) for a, b in zip(sorted(one, key=_order), sorted(two, key=_order), strict=True)
        )

    def _set(self, one: RealSet) -> Set:
        if isinstance(one, math_sets.Interval):
            low, high = (_value(end) for end in one.ends)
            return Interval(low, high, not one.closed[0], not one.closed[1])
        if isinstance(one, Points):
            return FiniteSet(*(_value(value) for value in one.values))
        if isinstance(one, Combined):
            parts = [self._set(part) for part in one.parts]
            if one.how == "or":
                return Union(*parts)
            if one.how == "and":
                return Intersection(*parts)
            return parts[0] - Union(*parts[1:])
        relations = one.text
        chain = math_sets.flipped(relations)
        if chain is None:
            raise Unparsable
        terms, signs = chain
        parts = [_relation(terms[place], sign, terms[place + 1]).as_set() for place, sign in enumerate(signs)]
        return Intersection(Reals, *parts)


def _simple_pieces(one: RealSet) -> list[math_sets.Interval] | None:
    return [one] if isinstance(one, math_sets.Interval) else None


def _relation(left: str, sign: str, right: str) -> Any:
    one, two = _value(left), _value(right)
    return {"<": one < two, "\\le": one <= two, "\\ne": Relational(one, two, "!=")}[sign]


def _pieces(one: Set) -> list[Any] | None:
    """Return the disjoint intervals and points of a set in order; None where they have no order."""
    parts = list(one.args) if isinstance(one, Union) else [one]
    if not all(isinstance(part, Interval | FiniteSet) for part in parts):
        return None
    points = [part for part in parts if isinstance(part, FiniteSet)]
    intervals = [part for part in parts if isinstance(part, Interval)]
    try:
        return [*sorted(intervals, key=lambda part: _order(part.start)), *points]
    except TypeError:
        return None


def _order(value: Any) -> float:
    return float(value)


def _value(text: str) -> Any:
    plain = squeezed(canonical(text))
    if plain.lstrip("+") in ("\\infty", "oo"):
        return oo
    if plain == "-\\infty":
        return -oo
    exact = exact_value(plain)
    if exact is not None:
        return Rational(exact.numerator, exact.denominator)
    parsed = _parsed(text)
    if not parsed or not isinstance(parsed[0], Expr):
        raise Unparsable
    return parsed[0].doit()


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """Parse a text that is nothing but an answer, with math-verify."""
    return tuple(parse(f"\\boxed{{{text.replace('$', '')}}}", [_LATEX], parsing_timeout=None))  # type: ignore[arg-type]


def _plain_letters(text: str) -> str:
    text = re.sub(r"(?<=\d)e(\+?-?\d+)", r"\\times 10^{\1}", text)
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"(\d+(?:\.\d+)?)\^\\circ", r"(\\frac{\1 \\pi}{180})", text)
    return _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text)
