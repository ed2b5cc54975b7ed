"""Expressions are compared by value: exactly where they are exact, at some places where they have symbols."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sympy import (
    Eq,
    Expr,
    Float,
    I,
    Integer,
    Integral,
    Product,
    Rational,
    S,
    Sum,
    Symbol,
    UnevaluatedExpr,
    oo,
)
from sympy.core.function import AppliedUndef, Derivative

from megatron_probsft.grading.mathematics.notation import squeezed, unwrapped
from megatron_probsft.grading.quantities.numbers import (
    NOISE,
    digits,
    exact_value,
    has_end,
    unit_in_the_last_place,
)

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


def same_values(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> bool | None:
    """Tell whether two expressions agree in value; None if they have none, as integrals and f(x)."""
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


def _evaluated(side: Any) -> Any:
    side = side.replace(lambda part: isinstance(part, UnevaluatedExpr), lambda part: part.args[0])
    return side.doit() if side.has(Sum, Product, Integral) else side


def _value_at(side: Any, values: dict[Any, Any]) -> Any:
    """Return a side's value as a number; None where there is none."""
    try:
        value = side.evalf(15, subs=values, maxn=_FEWER)
        return value if value.is_number and not value.has(S.NaN, S.ComplexInfinity) else None
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return None


def _agree(first: Any, second: Any, values: dict[Any, Any], one: Any, two: Any, bound: _Bound | None) -> bool:
    """Tell whether sides of about the values `one` and `two` differ by at most the bound, None meaning 0."""
    one, two = (Integer(0) if _lost(value) else value for value in (one, two))
    if bound is None:
        if abs(one - two) > _COARSE * max(abs(one), abs(two)):
            return False
        difference = (first - second).xreplace(values).evalf(5, maxn=_FEWER if values else _DIGITS)
    else:
        difference = (first - second).evalf(_SHORT, subs=values, maxn=_FEWER)
    if _lost(difference):
        return True
    return bound is not None and bool(abs(difference) <= bound.limit(max(abs(one), abs(two))))


def _lost(value: Any) -> bool:
    """Tell whether a value is zero or cannot be told from zero: sympy leaves it one bit then."""
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in value.as_real_imag())


@dataclass(frozen=True)
class _Bound:
    """A bound on the difference of decimals: absolute, or else relative to what is smaller than one."""

    size: Fraction
    relative: bool

    def limit(self, size: Any) -> Any:
        limit = Float(self.size.numerator, _SHORT) / self.size.denominator
        return limit * min(size, 1) if self.relative else limit


def _bound(first: Expr, second: Expr, found: str, wanted: str, tolerance: float | None) -> _Bound | None:
    """Return how far two values may differ: as in `equal_numbers` for decimals; None for exact ones."""
    if tolerance is not None:
        return _Bound(Fraction(str(tolerance)), relative=False)
    written = [one for side in (found, wanted) for one in re.findall(r"\d*\.\d+", squeezed(side))]
    if not written:
        return None
    noise = _Bound(NOISE, relative=True)
    if min(digits(one) for one in written) < 6:
        return noise
    plain = {side: squeezed(side) for side in (found, wanted)}
    alone = [side for side in (found, wanted) if "." in plain[side] and exact_value(plain[side]) is not None]
    if len(written) > 1 or not alone or first.free_symbols or second.free_symbols:
        return _Bound(Fraction(1, 1_000_000), relative=True)
    if _ends(second if alone[0] is found else first):
        return noise
    value = abs(exact_value(plain[alone[0]]) or Fraction(0))
    return _Bound(max(unit_in_the_last_place(plain[alone[0]]), NOISE * min(value, 1)), relative=False)


def _ends(side: Any) -> bool:
    """Tell whether an exact value can be written as a decimal with an end."""
    value = side.doit()
    return bool(value.is_Rational) and has_end(Fraction(int(value.p), int(value.q)))


def _may_be_words(first: Expr, second: Expr, found: str, wanted: str) -> bool:
    """Tell whether both sides may be words, as east and seat, that were read as products of letters."""
    return (
        "\\text" in found + wanted
        and all(
            isinstance(side, Symbol) or (side.is_Mul and all(part.is_Symbol for part in side.args))
            for side in (first, second)
        )
        and re.sub(r"\W", "", unwrapped(found)) != re.sub(r"\W", "", unwrapped(wanted))
    )


def proportional(one: Eq, two: Eq) -> bool:
    """Tell whether an equation is another's multiple: left minus right side, at some places."""
    sides: list[Any] = [one.lhs, one.rhs, two.lhs, two.rhs]
    if not all(isinstance(side, Expr) for side in sides):
        return False
    first, second = sides[0] - sides[1], sides[2] - sides[3]
    if first.free_symbols != second.free_symbols:
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


def equal_values(one: Any, two: Any) -> bool:
    """Tell whether two exact numbers, or two expressions, are equal."""
    if one == two:
        return True
    if one in (oo, -oo) or two in (oo, -oo):
        return False
    return _agree(one, two, {}, one.evalf(15), two.evalf(15), None)
