"""Mathematical answers as text: where a generation states one, its parts, and equality without algebra.

Everything here takes time linear in the text; what it cannot decide goes to `math_judge`'s processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

_TAIL = 4000  # characters at the end of a generation in which an answer without a box is looked for

_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:[eE]([-+]?\d{1,3}))?")
_TIMES_TEN = re.compile(r"(?:\\times|\\cdot|\*)10\^(?:\{([-+]?\d{1,3})\}|([-+]?\d))")
_FRACTION = re.compile(
    r"([-+]?)(?:\\frac\{([-+]?\d{1,50})\}\{(\d{1,50})\}|\\frac(\d)(\d)|(\d{1,50})/(\d{1,50}))"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox)\{([^{}]*)\}")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|big|Big)(?![A-Za-z])|\\[!,;: ]|\\\\?\$|\$|~|\\\(|\\\)|\\\[|\\\]"
    r"|\^\{?\\circ\}?|\\degree(?![A-Za-z])|°|\s"
)
_APART = re.compile(r"(?<=\d)\s+(?=\d)(?!\d{3}(?!\d))")  # 5 6 is not 56, but 10 000 is 10000
_SEPARATOR = re.compile(r"\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\quad|\\qquad")


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
        listed = number(normalise(text)) is None and len(parts(text, several=False)) > 1
        return cls(text, listed)


def tail(text: str) -> str:
    """Where an answer without a box is looked for."""
    return text[-_TAIL:]


def normalise(text: str) -> str:
    """The text without what has no mathematical meaning: dollar signs, spaces, sizes, fonts, degrees."""
    for _ in range(3):  # \text{\textbf{…}}
        text = _WRAPPED.sub(r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text.replace("−", "-").replace("\\%", "%"))
    text = re.sub(r"\\(?:lbrace|\{)", r"\\{", text)
    text = re.sub(r",\s*\\!\s*", ",", text)
    text = _APART.sub("␣", text)
    text = _DROPPED.sub("", text).rstrip(".,;")
    return re.sub(r"(?<=\^)\{(\w)\}|(?<=_)\{(\w)\}", lambda one: one[1] or one[2], text)


def number(text: str) -> Fraction | None:
    """The exact value of a normalised decimal, scientific or vulgar number; None for anything else."""
    if len(text) > 200 or not text:
        return None
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = (int(part) for part in fraction.groups()[1:] if part)
        return Fraction(-top if fraction[1] == "-" else top, bottom) if bottom else None
    exponent = 0
    if power := _TIMES_TEN.search(text):
        if power.end() != len(text):
            return None
        exponent, text = int(power[1] or power[2]), text[: power.start()]
    plain = _NUMBER.fullmatch(text)
    if not plain or not (plain[2] or plain[3]):
        return None
    value = Fraction(f"{plain[2].replace(',', '') or 0}.{plain[3] or 0}")
    return (-value if plain[1] == "-" else value) * Fraction(10) ** (int(plain[4] or 0) + exponent)


def parts(text: str, *, several: bool) -> list[str]:
    """The answers that a text lists, of a \\pm both; one that is no list, as 1,234 or (1, 2), is whole.

    With `several` every comma outside of brackets separates, also between digits: "100,200" are two.
    """
    text = _SEPARATOR.sub(",", re.sub(r",\s*\\!\s*", "", text))
    text = text.strip().strip("$").strip()
    if several and (inside := re.fullmatch(r"(?:\\left)?\\\{(.*?)(?:\\right)?\\\}", text, re.DOTALL)):
        text = inside[1]
    pieces, depth, begin = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign in ",;":
            digits = text[max(0, place - 3) : place + 5]
            if not several and re.search(r"\d,\d{3}(?!\d)", digits):
                continue
            pieces.append(text[begin:place])
            begin = place + 1
    pieces = [piece for piece in [*pieces, text[begin:]] if piece.strip(" $\n\t")]
    return [one for piece in pieces for one in _both_signs(piece)]


def same_text(found: str, wanted: str, unit: str | None = None) -> bool:
    """Equal once normalised, `found` with or without the unit; words in any case."""
    one, two = normalise(found), normalise(wanted)
    if unit:
        sign = normalise(unit)
        one, two = (text.removesuffix(sign) or text for text in (one, two))
    if one == two:
        return True
    words = [text.strip("()").lower() for text in (one, two)]
    return (words[0] == words[1] and words[0].isalpha() and len(words[0]) != 1) or _same_letter(one, two)


def decide(found: str, answer: MathAnswer) -> bool | None:
    """Whether an answer is right where text and numbers tell; None where algebra has to."""
    if same_text(found, answer.text, answer.unit):
        return True
    if answer.several:
        return None
    one, two = (number(_without_unit(text, answer.unit)) for text in (found, answer.text))
    if one is None or two is None:
        return None
    return equal_numbers(one, two, answer.tolerance)


def equal_numbers(one: Fraction, two: Fraction, tolerance: float | None) -> bool:
    """Equal but for what rounding at the sixth digit does, 0.333333 is 1/3, or within the tolerance."""
    if tolerance is not None:
        return abs(one - two) <= Fraction(str(tolerance))
    return abs(one - two) <= min(1, abs(two)) / 1_000_000


def match_all(found: Sequence[str], wanted: Sequence[str], equal: Callable[[str, str], bool]) -> bool:
    """Each wanted answer is met by another of the found ones, and none is left."""
    left = list(found)
    if len(left) != len(wanted):
        return False
    for one in wanted:
        hit = next((other for other in left if equal(other, one)), None)
        if hit is None:
            return False
        left.remove(hit)
    return True


def _without_unit(text: str, unit: str | None) -> str:
    text = normalise(text)
    return text.removesuffix(normalise(unit)) if unit else text


def _same_letter(one: str, two: str) -> bool:
    """A choice with or without brackets: (C) and C."""
    one, two = (text[1:-1] if re.fullmatch(r"\(\w\)", text) else text for text in (one, two))
    return one == two and len(one) == 1


def _both_signs(text: str) -> list[str]:
    if "\\pm" not in text:
        return [text]
    plus = text.replace("\\pm", "+").replace("\\mp", "-")
    minus = text.replace("\\pm", "-").replace("\\mp", "+")
    return [plus, minus]
