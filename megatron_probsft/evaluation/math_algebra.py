"""Equality of single expressions by value and by algebra, with math-verify's parser and sympy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
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
_ODD_ROOT = re.compile(r"\\sqrt\[(\d?[13579])\]\{ *-([^{}+-]+)\}")
_DIGITS = 3000  # at most, by which exact numbers are told apart
_FEWER = 150  # the same for values of expressions with symbols
_SHORT = 40  # digits of differences between decimals
_COARSE = Float("1e-10")  # relative: values further apart need no second look
# Values of the first symbol, and the steps to the others'. Positive ones come first: \sqrt{1/n} is 1/\sqrt{n}
# there; elsewhere sides must agree where both are real.
_PLACES = (
    (Rational(37, 100), Rational(419, 1000)), (Rational(261, 100), Rational(733, 1000)),
    (Integer(5), Integer(4)), (Integer(3), Integer(7)),
    (Rational(-143, 100), Rational(-391, 1000)), (Integer(-7), Integer(-3)),
)  # fmt: skip
_INFINITE = (oo, -oo)


class Unparsable(Exception):
    """A found answer that is no mathematics."""


class SympyAlgebra:
    """What `math_compare.Algebra` asks for."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        """Equal in value where both have one, else as math-verify finds. Raises Unparsable for `found`."""
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
        if isinstance(first, Eq) and isinstance(second, Eq):
            if first.free_symbols != second.free_symbols:
                return False
            if _proportional(first, second):
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
        parts = [_relation(terms[place], sign, terms[place + 1]).as_set() for place, sign in enumerate(signs)]
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
    return _agree(one, two, {}, one.evalf(15), two.evalf(15), None)


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
    return _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text)


def _same_values(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> bool | None:
    """Whether two expressions agree in value; None for what has none, as integrals and functions f(x)."""
    first, second = (_evaluated(side) for side in (first, second))
    if first in _INFINITE or second in _INFINITE:
        return first == second
    unknown = AppliedUndef, Integral, Sum, Product, Derivative, oo, -oo, S.ComplexInfinity
    if first.has(*unknown) or second.has(*unknown):
        sums = first.has(Sum, Product) and second.has(Sum, Product)
        return False if sums and first.free_symbols != second.free_symbols else None
    if _may_be_words(first, second, found, wanted):
        return None
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    imaginary = [symbol for symbol in symbols if str(symbol) == "i"]
    symbols = [symbol for symbol in symbols if str(symbol) != "i"]
    bound = _bound(first, second, found, wanted, tolerance)
    agreed = False
    for place, step in _PLACES if symbols else _PLACES[:1]:
        values: dict[Any, Any] = {one: place + step * count for count, one in enumerate(symbols)}
        values |= dict.fromkeys(imaginary, I)
        one, two = (_value_at(side, values) for side in (first, second))
        if one is None or two is None:
            if not symbols:
                return None
            continue
        if symbols and not imaginary and not (one.is_real and two.is_real):
            continue
        if not _agree(first, second, values, one, two, bound):
            return False
        agreed = True
    return True if agreed else None


def _evaluated(side: Expr) -> Expr:
    side: Any = side.replace(lambda part: isinstance(part, UnevaluatedExpr), lambda part: part.args[0])
    return side.doit() if side.has(Sum, Product, Integral) else side


def _value_at(side: Expr, values: dict[Any, Any]) -> Any:
    """A number; None where there is none."""
    try:
        value = side.evalf(15, subs=values, maxn=_FEWER)
        return value if value.is_number and not value.has(S.NaN, S.ComplexInfinity) else None
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return None


def _agree(
    first: Expr, second: Expr, values: dict[Any, Any], one: Any, two: Any, bound: _Bound | None
) -> bool:
    """Whether sides of about the values `one` and `two` differ by at most the bound; None: not at all."""
    if bound is None:
        if abs(one - two) > _COARSE * max(abs(one), abs(two)):
            return False
        difference = (first - second).xreplace(values).evalf(5, maxn=_FEWER if values else _DIGITS)
    else:
        difference = (first - second).evalf(_SHORT, subs=values, maxn=_FEWER)
    parts = difference.as_real_imag()
    if all(part == 0 or (part.is_Float and part._prec == 1) for part in parts):
        return True
    return bound is not None and bool(abs(difference) <= bound.limit(max(abs(one), abs(two))))


@dataclass(frozen=True)
class _Bound:
    """How far decimals may differ: absolutely, or else relative to what is smaller than one."""

    size: Fraction
    relative: bool

    def limit(self, size: Any) -> Any:
        limit = Float(self.size.numerator, _SHORT) / self.size.denominator
        return limit * min(size, 1) if self.relative else limit


def _bound(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> _Bound | None:
    """None for exact values; for decimals as `equal_numbers` has it."""
    if tolerance is not None:
        return _Bound(Fraction(str(tolerance)), relative=False)
    written = [one for side in (found, wanted) for one in re.findall(r"\d*\.\d+", squeezed(side))]
    if not written:
        return None
    noise = _Bound(NOISE, relative=True)
    if min(digits(one) for one in written) < 6:
        return noise
    plain = {side: squeezed(side) for side in (found, wanted)}
    alone = [side for side in (found, wanted) if "." in plain[side] and number(plain[side]) is not None]
    if len(written) > 1 or not alone or first.free_symbols or second.free_symbols:
        return _Bound(Fraction(1, 1_000_000), relative=True)
    if _ends(second if alone[0] is found else first):
        return noise
    value = abs(number(plain[alone[0]]) or Fraction(0))
    return _Bound(max(unit_in_the_last_place(plain[alone[0]]), NOISE * min(value, 1)), relative=False)


def _ends(side: Expr) -> bool:
    """Whether an exact value can be written as a decimal with an end."""
    value = side.doit()
    return bool(value.is_Rational) and has_end(Fraction(int(value.p), int(value.q)))


def _may_be_words(first: Expr, second: Expr, found: str, wanted: str) -> bool:
    """Products of letters on both sides that were written apart, as east and seat, have no values."""
    return (
        "\\text" in found + wanted
        and all(
            isinstance(side, Symbol) or (side.is_Mul and all(part.is_Symbol for part in side.args))
            for side in (first, second)
        )
        and re.sub(r"\W", "", unwrapped(found)) != re.sub(r"\W", "", unwrapped(wanted))
    )


def _proportional(one: Eq, two: Eq) -> bool:
    """Whether an equation is another's multiple: left minus right side, at some places."""
    first, second = (side.lhs - side.rhs for side in (one, two))
    if (
        not isinstance(first, Expr)
        or not isinstance(second, Expr)
        or first.free_symbols != second.free_symbols
    ):
        return False
    symbols = sorted(first.free_symbols, key=str)
    ratio = None
    for place, step in _PLACES[:4]:
        values: dict[Any, Any] = {one: place + step * count for count, one in enumerate(symbols)}
        a, b = (_value_at(side, values) for side in (first, second))
        if a is None or b is None or not a.is_real or not b.is_real or abs(b) < _COARSE or abs(a) < _COARSE:
            return False
        if ratio is not None and not _agree(first, ratio * second, values, a, a, None):
            return False
        ratio = ratio or (first / second).xreplace(values)
    return True
