"""Written numbers have exact values; two of them are compared by these."""

from __future__ import annotations

import re
from fractions import Fraction

NOISE = Fraction(1, 10**12)  # what arithmetic with sixteen digits changes

_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:[eE]\+?(-?\d{1,3}))?")
_ENDLESS = re.compile(r"([-+]?)(\d{0,30})\.(\d{0,30})\\(?:overline|bar)\{?(\d{1,30})\}?")
_TIMES_TEN = re.compile(r"(?:\\times|\\cdot|\*)10\^(?:\{([-+]?\d{1,3})\}|([-+]?\d))")
_FRACTION = re.compile(
    r"([-+]?)(\d{1,50}(?=\\))?(?:\\frac\{([-+]?\d{1,50})\}\{(\d{1,50})\}|(\d{1,50})/(\d{1,50}))"
)


def exact_value(text: str) -> Fraction | None:
    """Return the exact value of a squeezed decimal, scientific, vulgar or mixed number; None for others."""
    if len(text) > 200 or not text:
        return None
    if "\\" in text and (endless := _ENDLESS.fullmatch(text)):
        sign, whole, first, again = endless.groups()
        value = Fraction(f"{whole or 0}.{first}") + Fraction(
            int(again), (10 ** len(again) - 1) * 10 ** len(first)
        )
        return -value if sign == "-" else value
    if text[0] == "(" and text[-1] == ")" and "(" not in text[1:]:
        text = text[1:-1]
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = int(fraction[3] or fraction[5]), int(fraction[4] or fraction[6])
        if not bottom or (fraction[2] and top < 0):
            return None
        value = Fraction(top, bottom) + int(fraction[2] or 0)
        return -value if fraction[1] == "-" else value
    exponent = 0
    text = re.sub(r"^([-+]?)10\^", r"\g<1>1\\cdot10^", text)
    if power := _TIMES_TEN.search(text):
        if power.end() != len(text):
            return None
        exponent, text = int(power[1] or power[2]), text[: power.start()]
    plain = _NUMBER.fullmatch(text)
    if not plain or not (plain[2] or plain[3]):
        return None
    value = Fraction(f"{plain[2].replace(',', '') or 0}.{plain[3] or 0}")
    return (-value if plain[1] == "-" else value) * Fraction(10) ** (int(plain[4] or 0) + exponent)


def equal_numbers(one: str, two: str, tolerance: float | None = None) -> bool | None:
    """Tell whether two squeezed numbers are equal; None if one is no number.

    With a tolerance they may differ by it. Without one they must be the same, except for what arithmetic does
    to a decimal (0.30000000000000004 is 0.3), and for the last digit of a decimal with at least six, where
    the other value has no end (0.333333 is 1/3) or is a longer decimal.
    """
    first, second = exact_value(one), exact_value(two)
    if first is None or second is None:
        return None
    if tolerance is not None:
        return abs(first - second) <= Fraction(str(tolerance))
    if first == second:
        return True
    decimals = [value for value in (one, two) if "." in value]
    if not decimals:
        return False
    difference = abs(first - second)
    if difference <= NOISE * min(1, abs(second)):
        return len(decimals) == 1 or min(map(digits, decimals)) < 12
    if any(digits(value) < 6 for value in decimals) or (
        len(decimals) == 1 and has_end(first) and has_end(second)
    ):
        return False
    units = {unit_in_the_last_place(value) for value in decimals}
    return difference < max(units) and (len(decimals) == 1 or len(units) == 2)


def digits(text: str) -> int:
    """Return how many significant digits a decimal is written with."""
    mantissa = re.split(r"[eE\\]", text.lstrip("+-"))[0].replace(",", "")
    return len(mantissa.replace(".", "").lstrip("0"))


def unit_in_the_last_place(text: str) -> Fraction:
    """Return what one more in the last digit of a squeezed decimal adds."""
    mantissa = re.match(r"[-+]?[\d,]*(?:\.(\d*))?", text)
    places = len(mantissa[1] or "") if mantissa else 0
    whole, shown = exact_value(text), exact_value(mantissa[0]) if mantissa else None
    power = whole / shown if whole and shown else Fraction(1)
    return power / 10**places


def has_end(value: Fraction) -> bool:
    """Tell whether a value has a decimal expansion that ends."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
