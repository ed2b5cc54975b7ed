"""Numbers in other bases, as 2516_8, and times of day, as 11:30 a.m."""

from __future__ import annotations

import re

from megatron_probsft.grading.mathematics.notation import unwrapped

_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "sixteen": 16,
}  # fmt: skip
_BASE = re.compile(
    r"\(?\s*(?:\\overline\{)?(?P<digits>-?[0-9A-Fa-f][0-9A-Fa-f. ,]*)\}?\s*\)?\s*"
    r"(?:_ *\{?\s*(?:base\s*)?\(?(?P<low>\d{1,2}|[a-z]{3,7})\)?\s*\}?"
    r"|,?\s*\(?\s*(?:in\s+)?base[\s-]*(?P<named>\d{1,2}|[a-z]{3,7})\s*\)?)"
)
_TIME = re.compile(
    r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s*m\.?|(?:o'?clock|hours|h))?", re.IGNORECASE
)


def based(text: str) -> tuple[str, int] | None:
    """Return digits and base of a canonical number in another base, as 2516_8 or 2516 base 8."""
    match = _BASE.fullmatch(unwrapped(text).strip())
    if not match:
        return None
    name = (match["low"] or match["named"]).lower()
    base = int(name) if name.isdigit() else _BASE_WORDS.get(name, 0)
    digits = re.sub(r"[ ,]", "", match["digits"]).upper()
    plain = digits.lstrip("-")
    if not 2 <= base <= 36 or not re.search(r"\d", plain) or (not plain[:1].isdigit() and len(plain) == 1):
        return None
    if any(int(one, 16) >= base for one in plain if one != "."):
        return None
    return _without_zeros(digits), base


def time_of_day(text: str) -> tuple[int, int, int, str] | None:
    """Return hours, minutes, seconds and "a", "p" or "" of 11:30 or 11:30 a.m.; None if it is no time."""
    match = _TIME.fullmatch(unwrapped(text).strip())
    if not match or int(match[1]) > 24 or int(match[2]) > 59 or int(match[3] or 0) > 59:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").lower()


def same_time(one: tuple[int, int, int, str], two: tuple[int, int, int, str]) -> bool:
    """Tell whether times are equal; one without a.m. or p.m. is read on 12 and on 24 hours."""
    if (one[3] and two[3]) or not (one[3] or two[3]):
        return one == two
    said, other = (one, two) if one[3] else (two, one)
    hours = said[0] % 12 + (12 if said[3] == "p" else 0)
    return other[0] in (said[0], hours) and said[1:3] == other[1:3]


def _without_zeros(digits: str) -> str:
    sign, plain = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    return sign + (plain.lstrip("0") or "0")
