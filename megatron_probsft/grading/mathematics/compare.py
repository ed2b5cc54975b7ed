"""Are two mathematical answers equal? Lists, sets, tuples, matrices and equations are taken apart here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_probsft.grading.mathematics.compare_values import Algebra, ValueComparison
from megatron_probsft.grading.mathematics.names import (
    EQUALS,
    chain_ends,
    is_empty,
    is_equation,
    last_equation,
    name_parts,
    rename_variable,
    same_name,
    shared_name,
    split_name,
    with_names,
)
from megatron_probsft.grading.mathematics.notation import APART, canonical, squeezed
from megatron_probsft.grading.mathematics.sets import flipped, is_set, real_set, split_outside
from megatron_probsft.grading.mathematics.shapes import (
    braces,
    bracketed,
    decimal_comma,
    distinct,
    items,
    match_all,
    matrix,
    no_zeros,
    same_words,
    thousands,
    without_outer,
)
from megatron_probsft.grading.quantities.numbers import exact_value

_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_SUM_OF_LETTERS = re.compile(
    r"-?[A-Za-z](?:\^\{?\d\}?)?(?:\s*[-+]?\s*[A-Za-z](?:_\{?\w\}?)?(?:\^\{?\d\}?)?)+"
)


class Comparison:
    """Compares answers, with one algebra and the tolerance and unit of one benchmark's answer."""

    def __init__(self, algebra: Algebra, tolerance: float | None = None, unit: str | None = None) -> None:
        self._algebra, self._tolerance = algebra, tolerance
        self._single = ValueComparison(algebra, tolerance, unit)

    def equal(self, found: str, wanted: str, *, several: bool = False) -> bool:
        """Tell whether an answer is the reference; with `several` every comma of the reference separates."""
        return self._equal(canonical(found), canonical(wanted), several)

    def _equal(self, found: str, wanted: str, several: bool = False) -> bool:
        if not found or not wanted:
            return found == wanted
        if squeezed(found) == squeezed(wanted):
            return True
        found, wanted = without_outer(found), without_outer(wanted)
        if is_empty(found) or is_empty(wanted):
            return is_empty(found) and is_empty(wanted)
        if (words := same_words(found, wanted)) is not None:
            return words
        rows = matrix(found), matrix(wanted)
        if rows[0] or rows[1]:
            return self._matrices(found, wanted, *rows)
        if is_set(found) or is_set(wanted):
            sets = self._sets(found, wanted)
            if sets is not None:
                return sets
        if decimal_comma(squeezed(found), wanted) or decimal_comma(squeezed(wanted), found):
            return True
        lists = self._lists(found, wanted, several)
        if lists is not None:
            return lists
        tuples = self._tuples(found, wanted)
        return self._equations(found, wanted) if tuples is None else tuples

    def _matrices(self, found: str, wanted: str, one: list[list[str]], two: list[list[str]]) -> bool:
        if not one and not two:
            return self._algebra.same(found, wanted, self._tolerance)
        if not one or not two:  # a vector as (1, 2, 3)
            rows, other = (one, wanted) if one else (two, found)
            inside = bracketed(other)
            flat = [cell for row in rows for cell in row]
            if inside and 1 in (len(rows), len(rows[0])):
                return self._in_order(flat, inside[1]) if one else self._in_order(inside[1], flat)
            return self._algebra.same(found, wanted, self._tolerance)
        return [len(row) for row in one] == [len(row) for row in two] and all(
            self._in_order(*rows) for rows in zip(one, two, strict=True)
        )

    def _sets(self, found: str, wanted: str) -> bool | None:
        chains = flipped(found), flipped(wanted)
        if chains[0] and chains[1] and chains[0][1] == chains[1][1] and chains[0][0] == chains[1][0]:
            return True
        one, two = real_set(found), real_set(wanted)
        if one and two:
            if one[0] and two[0] and one[0].lower() != two[0].lower():
                return False
            return self._algebra.same_sets(one[1], two[1])
        if chains[0] and chains[1] and chains[0][1] == chains[1][1]:
            return self._in_order(chains[0][0], chains[1][0]) or None
        return None

    def _lists(self, found: str, wanted: str, several: bool) -> bool | None:
        one, two = items(found), items(wanted, every_comma=several)
        if len(one) == 1 and len(two) == 1:
            ambiguous = thousands(found) and thousands(wanted) is False and APART not in found
            if not thousands(wanted) or ambiguous:
                return None
            if not braces(found):
                return None
        if len(two) > 1 and len(one) == 1:
            name, value = split_name(one[0])
            if name and len(items(value, every_comma=True)) > 1 and bracketed(value) is None:
                one = items(value, every_comma=True)
            elif thousands(inner := found if (held := braces(found)) is None else held):
                again = items(inner, every_comma=True)
                one = again if no_zeros(again) else one
            inside = bracketed(value if name else found)
            if inside and not braces(wanted) and (inside[0] == "(" or len(inside[1]) > 2):
                named = name_parts(name) if name else None
                return self._in_order(inside[1], with_names(two, named))
        if len(one) > 1 and len(two) == 1:
            name, value = split_name(two[0])
            inside = bracketed(value if name else wanted)
            if inside and not braces(found) and (inside[0] == "(" or len(inside[1]) > 2):
                named = name_parts(name) if name else None
                return self._in_order(with_names(one, named), inside[1])
            if (thousands(wanted) and (again := items(wanted, every_comma=True)) and no_zeros(again)) or (
                name and (again := items(value)) and len(again) > 1
            ):
                two = again
        if len(one) == 1 and len(two) == 1:  # a set of one number and the number itself: forgiven
            whole = (one[0], two[0]) == (found, wanted)
            return None if whole or not (braces(found) or braces(wanted)) else self._equal(one[0], two[0])
        one, two = shared_name(one), shared_name(two)
        if len(one) > len(two) == len(distinct(two)) or (braces(found) and braces(wanted)):
            one, two = distinct(one), distinct(two)
        return match_all(one, two, self._equal)

    def _tuples(self, found: str, wanted: str) -> bool | None:
        name, value = split_name(found)
        other, aim = split_name(wanted)
        one, two = bracketed(value), bracketed(aim)
        if not one or not two or len(one[1]) < 2 or len(two[1]) < 2:
            return None
        if name and other and name_parts(name) != name_parts(other):
            return False
        if len(one[1]) == 2 and one[0] != two[0]:
            return False
        return self._in_order(one[1], two[1])

    def _in_order(self, one: Sequence[str], two: Sequence[str]) -> bool:
        return len(one) == len(two) and all(self._equal(a, b) for a, b in zip(one, two, strict=True))

    def _equations(self, found: str, wanted: str) -> bool:
        name, value = split_name(found)
        other, aim = split_name(wanted)
        if name and other:
            if same_name(name, other):
                return self._values(value, aim)
            if renamed := rename_variable(name, value, other):
                return self._values(renamed, aim)
            return self._algebra.same(found, wanted, self._tolerance)
        if name and not is_equation(wanted):
            return self._values(value, wanted)
        if other and not is_equation(found):
            return self._values(found, aim)
        if is_equation(found) and not is_equation(wanted):
            sides = split_outside(found, EQUALS)
            if not _LETTER.search(found):  # 0.75 = 3/4
                return self._values(found, wanted)
            sums = len(sides) == 2 and _SUM_OF_LETTERS.fullmatch(sides[0].strip())
            return (
                bool(sums)
                and exact_value(squeezed(wanted)) not in (None, 0)
                and self._values(sides[1], wanted)
            )
        if is_equation(wanted) and not is_equation(found):
            return not _LETTER.search(wanted) and self._values(found, wanted)
        if is_equation(found):
            return self._algebra.same(last_equation(found), last_equation(wanted), self._tolerance)
        return self._values(found, wanted)

    def _values(self, found: str, wanted: str) -> bool:
        """Compare the last values of chains of equations; an approximate one counts beside the exact one."""
        one, two = chain_ends(found), chain_ends(wanted)
        if one == [found] and two == [wanted]:
            return self._single.equal(found, wanted)
        return any(self._equal(end, aim) for end in one for aim in two)
