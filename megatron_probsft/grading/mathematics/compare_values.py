"""Are two single values equal? Numbers, units, bases and ratios are compared here, others by an `Algebra`."""

from __future__ import annotations

import re
from typing import Protocol

from megatron_probsft.grading.mathematics.notation import APART, canonical, squeezed, unwrapped
from megatron_probsft.grading.mathematics.sets import RealSet
from megatron_probsft.grading.mathematics.shapes import COLON, split_at
from megatron_probsft.grading.quantities.bases import based, same_time, time_of_day
from megatron_probsft.grading.quantities.numbers import equal_numbers
from megatron_probsft.grading.quantities.units import (
    Unit,
    contradict,
    in_base_units,
    product,
    quantity,
    scaled,
    text_unit,
)

_RADIANS = r"\frac{\pi}{180}"


class Algebra(Protocol):
    """Decides what shapes cannot tell. Expressions are canonical, without units, names and lists."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        """Tell whether two expressions, equations or inequalities are equal."""
        ...

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        """Tell whether two sets of real numbers are equal."""
        ...


class ValueComparison:
    """Compares canonical values, with one algebra and the tolerance and unit of one benchmark's answer."""

    def __init__(self, algebra: Algebra, tolerance: float | None, unit: str | None) -> None:
        self._algebra, self._tolerance = algebra, tolerance
        self._unit = text_unit(canonical(unit)) if unit else None

    def equal(self, found: str, wanted: str) -> bool:
        """Tell whether an answer has the reference's value; both are neither lists nor equations."""
        bases = based(found), based(wanted)
        if bases[0] and bases[1]:
            return bases[0] == bases[1]
        if bases[0] or bases[1]:
            digits = (bases[0] or bases[1] or ("", 0))[0]
            other = re.sub(r"[ ,]", "", unwrapped(wanted if bases[0] else found)).upper()
            return other.lstrip("0") == digits.lstrip("0")
        times = time_of_day(found), time_of_day(wanted)
        if times[0] and times[1]:
            return same_time(times[0], times[1])
        ratios = split_at(found, COLON), split_at(wanted, COLON)
        if len(ratios[0]) > 1 and (len(ratios[1]) > 1 or len(ratios[0]) > 2):
            return self._proportional(*ratios)
        (value, unit), (aim, wanted_unit) = quantity(found), quantity(wanted)
        return self._with_units(found, wanted, value, unit, aim, wanted_unit or self._unit)

    def _proportional(self, one: list[str], two: list[str]) -> bool:
        pairs = zip(one[1:], two[1:], strict=False)
        return len(one) == len(two) and all(
            self._expressions(product(one[0], b), product(two[0], a)) for a, b in pairs
        )

    def _with_units(
        self, found: str, wanted: str, value: str, unit: Unit | None, aim: str, wanted_unit: Unit | None
    ) -> bool:
        if wanted_unit and not wanted_unit.certain and (unit is None or not unit.certain):
            return self._expressions(found, wanted)  # 5 m may be 5 times m
        unit, value = scaled(unit, value)
        wanted_unit, aim = scaled(wanted_unit, aim)
        if unit is None or wanted_unit is None:
            return self._one_unit_missing(value, unit, aim, wanted_unit)
        if [*unit.powers] == ["degree"] and [*wanted_unit.powers] == ["radian"]:
            return self._expressions(product(value, _RADIANS), aim)
        if [*unit.powers] == ["radian"] and [*wanted_unit.powers] == ["degree"]:
            return self._expressions(value, product(aim, _RADIANS))
        if contradict(unit, wanted_unit):
            return False
        if unit.scale == wanted_unit.scale or not unit.powers or not wanted_unit.powers:
            return self._expressions(value, aim)
        return self._expressions(in_base_units(value, unit), in_base_units(aim, wanted_unit))

    def _one_unit_missing(self, value: str, unit: Unit | None, aim: str, wanted_unit: Unit | None) -> bool:
        """A missing unit is forgiven; degrees may also stand for radians, and percents for hundredths."""
        if self._expressions(value, aim):
            return True
        either = unit or wanted_unit
        angle = either is not None and either.powers == {"degree": 1}
        part = either is not None and either.powers == {"percent": 1}
        if not (angle or part) or self._tolerance is not None:
            return False
        factor = _RADIANS if angle else "\\frac{1}{100}"
        if angle and "\\pi" not in value + aim:
            return False
        if unit:
            return self._expressions(product(value, factor), aim)
        return self._expressions(value, product(aim, factor))

    def _expressions(self, found: str, wanted: str) -> bool:
        one, two = squeezed(found), squeezed(wanted)
        if one == two:
            return True
        decided = equal_numbers(one, two, self._tolerance)
        if decided is not None:
            return decided
        if APART in one or APART in two:
            return False
        return self._algebra.same(found, wanted, self._tolerance)
