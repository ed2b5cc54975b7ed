"""Equality of single expressions by value and by algebra, with math-verify's parser and sympy."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Basic,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Integer,
    Integral,
    Intersection,
    Interval,
    Product,
    Rational,
    Reals,
    S,
    Set,
    Sum,
    Symbol,
    UnevaluatedExpr,
    Union,
    oo,
)
from sympy.core.function import AppliedUndef, Derivative
from sympy.core.relational import Relational

from megatron_probsft.evaluation import math_sets
from megatron_probsft.evaluation.math_notation import canonical, squeezed, unwrapped
from megatron_probsft.evaluation.math_numbers import (
    NOISE,
    SIXTH,
    digits,
    equal_numbers,
    has_end,
    number,
    unit_in_the_last_place,
)
from megatron_probsft.evaluation.math_sets import Combined, Points, RealSet

# As math-verify's own, but that units are not dropped: what contradicts must not be lost.
_LATEX = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
)
_DIGITS = 60  # with which values are compared: other values of exact expressions differ long before
_MOST_DIGITS = 500  # that real numbers are told apart by
_EXACT = Float("1e-40", _DIGITS)
# Values for the first symbol; the others' are these plus steps. Positive ones come first: \sqrt{1/n} is 1/\sqrt{n}
# there, and where both sides are real everywhere they must agree everywhere.
_PLACES = ("0.37", "2.61", "5", "3", "-1.43", "-7")


class Unparsable(Exception):
    """A found answer that is no mathematics."""


class SympyAlgebra:
    """What `math_compare.Algebra` asks for."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        """Equal in value where both have one, else as math-verify finds. Raises Unparsable for a found answer."""
        one = _parsed(_plain_letters(found))
        if not one:
            raise Unparsable
        two = _parsed(_plain_letters(wanted))
        if not two:
            return False
        first, second = one[0], two[0]
        if isinstance(first, Expr) and isinstance(second, Expr):
            decided = _same_values(first, second, found, wanted, tolerance)
            if decided is not None:
                return decided
        if isinstance(first, Eq) and isinstance(second, Eq) and (_proportional(first, second)):
            return True
        return bool(verify(list(two), list(one), timeout_seconds=None))

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        """Equal as sets of real numbers."""
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
            return sides and _equal_values(one.start, two.start) and _equal_values(one.end, two.end)
        return len(one) == len(two) and all(
            _equal_values(a, b) for a, b in zip(sorted(one, key=_order), sorted(two, key=_order), strict=True)
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
        parts = [
            _relation(terms[place], sign, terms[place + 1]).as_set() for place, sign in enumerate(signs)
        ]
        return Intersection(Reals, *parts)


def _simple_pieces(one: RealSet) -> list[math_sets.Interval] | None:
    return [one] if isinstance(one, math_sets.Interval) else None


def _relation(left: str, sign: str, right: str) -> Any:
    one, two = _value(left), _value(right)
    return {"<": one < two, "\\le": one <= two, "\\ne": Relational(one, two, "!=")}[sign]


def _pieces(one: Set) -> list[Any] | None:
    """The disjoint intervals and points of a set in order; None where they have no order."""
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


def _equal_values(one: Any, two: Any) -> bool:
    if one == two:
        return True
    if one in (oo, -oo) or two in (oo, -oo):
        return False
    return bool(_agree(one, two, _EXACT))


def _value(text: str) -> Any:
    plain = squeezed(canonical(text))
    if plain.lstrip("+") in ("\\infty", "oo"):
        return oo
    if plain == "-\\infty":
        return -oo
    exact = number(plain)
    if exact is not None:
        return Rational(exact.numerator, exact.denominator)
    parsed = _parsed(text)
    if not parsed or not isinstance(parsed[0], Expr):
        raise Unparsable
    return parsed[0].doit()


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """What math-verify makes of an answer that is nothing but the answer."""
    return tuple(parse(f"\\boxed{{{text.replace('$', '')}}}", [_LATEX], parsing_timeout=None))  # type: ignore[arg-type]


def _plain_letters(text: str) -> str:
    text = re.sub(r"(?<=\d)e(\+?-?\d+)", r"\\times 10^{\1}", text)
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"(\d+(?:\.\d+)?)\^\\circ", r"(\\frac{\1 \\pi}{180})", text)
    return text


def _same_values(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> bool | None:
    """Whether two expressions agree in value; None for what has none, as sums without end and functions f(x)."""
    for side in (first, second):
        if side.has(UnevaluatedExpr):
            side = side.replace(UnevaluatedExpr, lambda inner: inner)
    first, second = (side.replace(lambda part: isinstance(part, UnevaluatedExpr), lambda part: part.args[0]) for side in (first, second))
    if any(side.has(Sum, Product, Integral) for side in (first, second)):
        first, second = (side.doit() for side in (first, second))
        if first.free_symbols != second.free_symbols and first.has(Sum, Product) and second.has(Sum, Product):
            return False
    if any(side.has(AppliedUndef, Integral, Sum, Product, Derivative, oo, -oo, S.ComplexInfinity) for side in (first, second)):
        if first in (oo, -oo) or second in (oo, -oo):
            return first == second
        return None
    symbols = sorted((first.free_symbols | second.free_symbols), key=str)
    imaginary = [symbol for symbol in symbols if str(symbol) == "i"]
    symbols = [symbol for symbol in symbols if str(symbol) != "i"]
    if _may_be_words(first, second, found, wanted):
        return None
    bound = _bound(first, second, found, wanted, tolerance)
    if bound is _EXACT and not symbols and not imaginary and first.is_real and second.is_real:
        difference = (first - second).evalf(5, maxn=_MOST_DIGITS)
        if difference.is_Float or difference.is_zero:
            return bool(difference == 0 or difference._prec == 1)
    agreed = False
    for place in _PLACES if symbols else _PLACES[:1]:
        values: dict[Any, Any] = {
            symbol: _place(place, step) for step, symbol in enumerate(symbols)
        } | dict.fromkeys(imaginary, I)
        try:
            one, two = (side.evalf(_DIGITS, subs=values, maxn=4 * _DIGITS) for side in (first, second))
            known = one.is_number and two.is_number and not one.has(S.NaN, S.ComplexInfinity) and not two.has(S.NaN, S.ComplexInfinity)
        except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
            known = False
        if not known:
            if not symbols:
                return None
            continue
        if symbols and not imaginary and not (one.is_real and two.is_real):
            continue
        if not _agree(one, two, bound):
            return False
        agreed = True
    return True if agreed else None


def _place(place: str, step: int) -> Any:
    if "." not in place:
        return Integer(int(place) + (step if int(place) > 0 else -step))
    return Float(place, _DIGITS) + Float("0.419", _DIGITS) * step * (-1 if place.startswith("-") else 1)


def _agree(one: Any, two: Any, bound: Any) -> bool:
    """Within the bound, relative to numbers below one and absolute above it for decimals."""
    one, two = (Integer(0) if one.is_Float and one._prec == 1 else one for one in (one, two))  # lost in noise
    difference = (one - two).evalf(_DIGITS)
    if difference == 0 or (difference.is_Float and difference._prec == 1):
        return True
    size = max(abs(one.evalf(_DIGITS)), abs(two.evalf(_DIGITS)))
    if isinstance(bound, tuple):
        how, limit = bound
        return bool(abs(difference) <= (limit if how == "absolute" else limit * min(size, 1)))
    return bool(abs(difference) <= bound * size)


def _bound(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> Any:
    """How far values may differ: not at all, but for decimals as `equal_numbers` has it."""
    if tolerance is not None:
        return "absolute", Float(str(tolerance), _DIGITS)
    decimals = [squeezed(side) for side in (found, wanted) if re.search(r"\d\.\d|\.\d", side)]
    if not decimals:
        return _EXACT
    written = [one for text in decimals for one in re.findall(r"\d*\.\d+", text)]
    if min(digits(one) for one in written) < 6:
        return "relative", Float(NOISE.numerator, _DIGITS) / NOISE.denominator
    if len(decimals) == 1 and number(decimals[0]) is not None and _ends(first if decimals[0] == squeezed(wanted) else second):
        return "relative", Float(NOISE.numerator, _DIGITS) / NOISE.denominator
    if len(decimals) == 1 and number(decimals[0]) is not None and not (first.free_symbols | second.free_symbols):
        unit = unit_in_the_last_place(decimals[0])
        value = abs(number(decimals[0]) or 0)
        limit = max(unit, SIXTH * min(value, 1))
        return "absolute", Float(limit.numerator, _DIGITS) / limit.denominator
    return "relative", Float(SIXTH.numerator, _DIGITS) / SIXTH.denominator


def _ends(side: Expr) -> bool:
    """Whether an exact value can be written as a decimal with an end."""
    value = side.doit()
    return bool(value.is_Rational) and has_end(Fraction(int(value.p), int(value.q)))


def _may_be_words(first: Expr, second: Expr, found: str, wanted: str) -> bool:
    """Products of letters on both sides that were written apart, as east and seat, have no values."""
    return (
        "\\text" in found + wanted
        and all(isinstance(side, Symbol) or (side.is_Mul and all(part.is_Symbol for part in side.args)) for side in (first, second))
        and re.sub(r"\W", "", unwrapped(found)) != re.sub(r"\W", "", unwrapped(wanted))
    )


def _proportional(one: Eq, two: Eq) -> bool:
    """Whether an equation is another's multiple: left minus right side, at some places."""
    first, second = (side.lhs - side.rhs for side in (one, two))
    if not isinstance(first, Expr) or not isinstance(second, Expr) or first.free_symbols != second.free_symbols:
        return False
    if first.has(AppliedUndef, Derivative, Integral, Sum) or second.has(AppliedUndef, Derivative, Integral, Sum):
        return False
    symbols = sorted(first.free_symbols, key=str)
    ratios = []
    for place in _PLACES[:4]:
        values: Any = {symbol: _place(place, 2 * step + 1) for step, symbol in enumerate(symbols)}
        try:
            a, b = (side.evalf(_DIGITS, subs=values) for side in (first, second))
            if not (a.is_number and b.is_number) or abs(b) < Float("1e-30"):
                continue
            ratios.append((a / b).evalf(_DIGITS))
        except (TypeError, ValueError, ArithmeticError):
            return False
    return len(ratios) > 1 and abs(ratios[0]) > 0 and all(_agree(ratios[0], ratio, _EXACT) for ratio in ratios[1:])


__all__ = ["Basic", "SympyAlgebra", "Unparsable"]
