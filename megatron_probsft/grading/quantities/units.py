"""Units stand beside a number, and can contradict another answer's unit.

A unit that is missing may be forgiven; one that contradicts may not. 1 m and 100 cm are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from megatron_probsft.grading.mathematics.notation import DOLLAR, squeezed, unwrapped
from megatron_probsft.grading.quantities.numbers import exact_value
from megatron_probsft.grading.quantities.unit_table import IDLE_WORDS, SCALES, UNITS, WORDS_OF_FORMULAS

_BY_NAME = {
    name: (Fraction(scale), powers) for names, (scale, powers) in UNITS.items() for name in names.split()
}
_LETTERS = r"[A-Za-zµμÅΩ$€£¥₹¢＄-]+\.?"
_TOKEN = re.compile(
    r"\s*(?:(?P<word>\\(?:AA|Omega|mu *(?:\\text\{)?[A-Za-z]?\}?)|\\text\{[^{}]*\}|%|\^\\circ|"
    + _LETTERS
    + r")"
    r"|\^ *\{?(?P<power>-?\d)\}?|(?P<over>/)|\\cdot|\\times)"
)
_TAIL = re.compile(
    r"(?:\s*(?:\\text\{[^{}]*\}|(?<![\\A-Za-z])" + _LETTERS + r"|\\(?:AA|Omega|mu)(?![A-Za-z])|%|\^\\circ"
    r"|\^ *\{?-?\d\}?|/|\\cdot|\\times))+\s*$"
)
_OVER = re.compile(r"(?<=\d) *\\frac\{([A-Za-z]+)\}\{([A-Za-z]+)\}$")
_POWER = re.compile(r"\^\{?(-?\d)\}?")
_CURRENCY = re.compile(rf"([-+]?)\s*(?:US|U\.S\.)?([{DOLLAR}€£¥₹])\s*(.*)")


@dataclass(frozen=True)
class Unit:
    """A unit is `scale` times the base units `powers`; `words` are nouns that are no units, as apples.

    `certain` says that it is no product of variables, which "5 m" in mathematics may be.
    """

    scale: Fraction
    powers: Mapping[str, int]
    words: frozenset[str] = frozenset()
    certain: bool = True


def quantity(text: str) -> tuple[str, Unit | None]:
    """Split a canonical text into its value and the unit behind it (or before it, as $5), if there is one."""
    if currency := _CURRENCY.fullmatch(text):
        value, behind = quantity(currency[3])
        scale, powers = _BY_NAME[currency[2]]
        million = behind is not None and not behind.powers and not behind.words
        return currency[1] + value, Unit(scale * behind.scale if behind and million else scale, powers)
    if (over := _OVER.search(text)) and _row(over[1]) and _row(over[2]):  # 60 \\frac{km}{h}
        text = f"{text[: over.start()]} {over[1]} / {over[2]}"
    tail = _TAIL.search(text)
    while tail and tail.start() > 0:
        value, behind = text[: tail.start()].strip(), tail[0].lstrip()
        if _may_follow(value, tail[0]) and (unit := text_unit(behind)):
            return value, unit
        tail = _TAIL.search(text, tail.end() - len(behind) + 1)
    return text, None


def text_unit(text: str) -> Unit | None:
    """Return the unit that a canonical text spells; None if it may be none, as a product of variables."""
    reader, place, text = _Reader(), 0, text.strip()
    while place < len(text):
        token = _TOKEN.match(text, place)
        if not token or not reader.take(token):
            return None
        place = token.end()
    return reader.unit()


def contradict(one: Unit, two: Unit) -> bool:
    """Tell whether two units are not of one kind; nouns beside units, as dollars per apple, do not count."""
    kinds = one.powers, two.powers
    if {"degree": 1} in kinds and ({"celsius": 1} in kinds or {"fahrenheit": 1} in kinds):
        return False
    if one.powers or two.powers:
        return one.powers != two.powers and bool(one.powers or one.words) and bool(two.powers or two.words)
    return bool(one.words and two.words) and not one.words & two.words


def scaled(unit: Unit | None, value: str) -> tuple[Unit | None, str]:
    """Move a number among the words, as in 3 million, from the unit into the value."""
    if unit is None or unit.powers:
        return unit, value
    if unit.scale != 1:
        value = product(value, str(unit.scale))
    return (Unit(Fraction(1), {}, unit.words) if unit.words else None), value


def in_base_units(value: str, unit: Unit) -> str:
    """Return the value times the unit's scale."""
    return product(value, rf"\frac{{{unit.scale.numerator}}}{{{unit.scale.denominator}}}")


def product(value: str, factor: str) -> str:
    """Return a canonical product, in digits where both are numbers."""
    one, two = exact_value(squeezed(value)), exact_value(squeezed(factor))
    if one is None or two is None:
        return rf"({value}) \cdot ({factor})"
    both = one * two
    if both.denominator == 1:
        return str(both.numerator)
    return rf"\frac{{{both.numerator}}}{{{both.denominator}}}"


class _Reader:
    """A reader of a unit's words, powers and fraction bars, from left to right."""

    def __init__(self) -> None:
        self._scale, self._powers, self._words = Fraction(1), dict[str, int](), set[str]()
        self._last: tuple[Fraction, Mapping[str, int]] = (Fraction(1), {})
        self._sign, self._next_power, self._certain, self._said = 1, 1, True, False

    def take(self, token: re.Match[str]) -> bool:
        """Read one token; False if it cannot belong to a unit."""
        if token["over"]:
            self._sign = -1
        elif token["power"]:
            self._raise(int(token["power"]))
        elif raw := token["word"]:
            upright = "\\text" in raw
            words = unwrapped(raw).replace("\\mu ", "\\mu").split()
            return all(self._take_word(word, upright) for word in words)
        return True

    def unit(self) -> Unit | None:
        if not self._said:
            return None
        powers = {name: count for name, count in self._powers.items() if count}
        return Unit(self._scale, powers, frozenset(self._words), self._certain)

    def _take_word(self, word: str, upright: bool) -> bool:
        """Read a word, or within \\text{…} a whole unit as km/h or m^2."""
        for piece in re.split(r"(/|\^\{?-?\d\}?)", word) if word != "^\\circ" else [word]:
            if piece == "/":
                self._sign = -1
            elif power := _POWER.fullmatch(piece):
                self._raise(int(power[1]))
            elif (name := piece.strip(".,;:()-")) and not self._take_name(name, upright):
                return False
        return True

    def _take_name(self, name: str, upright: bool) -> bool:
        lower = name.lower()
        row = _row(name)
        if self._powers == {"degree": 1} and name in ("C", "F"):
            self._powers, self._scale = {}, Fraction(1)
            row = _BY_NAME["celsius" if name == "C" else "fahrenheit"]
        if lower == "per":
            self._sign = -1
        elif lower in ("square", "sq", "cubic", "cu"):
            self._next_power, self._said = 2 if lower.startswith("sq") else 3, True
        elif lower in ("squared", "cubed"):
            self._raise(2 if lower == "squared" else 3)
        elif lower in SCALES:
            self._scale, self._said = self._scale * SCALES[lower] ** self._sign, True
        elif row:
            self._certain &= upright or len(name) > 1 or not name.isalpha()
            self._multiply(*row)
        elif lower in IDLE_WORDS and (upright or (lower not in WORDS_OF_FORMULAS and len(lower) > 1)):
            self._said, self._last = True, (Fraction(1), {})
        elif (upright and len(name) > 1) or (
            len(name) > 2 and name.isalpha() and lower not in WORDS_OF_FORMULAS
        ):
            self._words.add(_singular(lower))
            self._said, self._last, self._next_power = True, (Fraction(1), {}), 1
        else:
            return False
        return True

    def _multiply(self, scale: Fraction, powers: Mapping[str, int]) -> None:
        exponent = self._next_power * self._sign
        self._last = scale**exponent, {name: count * exponent for name, count in powers.items()}
        self._next_power, self._said = 1, True
        self._add(1)

    def _raise(self, power: int) -> None:
        """Raise the last unit to a power."""
        self._add(power - 1)

    def _add(self, times: int) -> None:
        scale, powers = self._last
        self._scale *= scale**times
        for name, count in powers.items():
            self._powers[name] = self._powers.get(name, 0) + count * times


def _may_follow(value: str, tail: str) -> bool:
    """Tell whether a unit can follow a value: 5 cm, 5cm, (1+x) cm and x\\text{ cm}, but not 5x nor 5^2."""
    behind = tail.lstrip()
    if behind.startswith("^\\circ") and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", value):
        return False
    if re.match(r"\^(?! *\{? *\\circ)", behind) or (
        len(behind.strip()) < 2 and behind.isalpha() and behind == tail
    ):
        return False
    return re.search(r"[\d})\]]$", value) is not None or (
        behind.startswith("\\text") and value[-1:].isalpha()
    )


def _row(name: str) -> tuple[Fraction, Mapping[str, int]] | None:
    """Look a unit up by its symbol, or by its name in any case, singular or plural."""
    forms = (name, name.lower(), _singular(name.lower())) if len(name) > 2 else (name,)
    return next((_BY_NAME[form] for form in forms if form in _BY_NAME), None)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
