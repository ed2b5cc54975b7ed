"""Units, bases and times of day: what stands beside a number and can contradict another answer's.

A unit that is missing may be forgiven; one that contradicts may not. 1 m and 100 cm are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from megatron_probsft.evaluation.math_notation import DOLLAR, unwrapped

# name: how many of which base unit. Lengths are in m, masses in g, times in s, money in each currency's own.
_UNITS: dict[str, tuple[str, dict[str, int]]] = {
    "m meter metre": ("1", {"m": 1}), "km kilometer kilometre": ("1000", {"m": 1}),
    "cm centimeter centimetre": ("1/100", {"m": 1}), "mm millimeter millimetre": ("1/1000", {"m": 1}),
    "dm decimeter decimetre": ("1/10", {"m": 1}), "nm nanometer nanometre": ("1e-9", {"m": 1}),
    "\\mum μm µm um micron micrometer": ("1e-6", {"m": 1}), "pm picometer": ("1e-12", {"m": 1}),
    "\\AA Å angstrom": ("1e-10", {"m": 1}), "in inch inche": ("0.0254", {"m": 1}),
    "ft foot feet": ("0.3048", {"m": 1}), "yd yard": ("0.9144", {"m": 1}), "mi mile": ("1609.344", {"m": 1}),
    "pc parsec": ("1", {"parsec": 1}), "ly light-year lightyear": ("1", {"light-year": 1}),
    "g gram gramme": ("1", {"g": 1}), "kg kilogram": ("1000", {"g": 1}), "mg milligram": ("1/1000", {"g": 1}),
    "\\mug μg µg": ("1e-6", {"g": 1}), "t ton tonne": ("1e6", {"g": 1}), "lb pound": ("453.59237", {"g": 1}),
    "oz ounce": ("28.349523125", {"g": 1}), "amu": ("1", {"amu": 1}),
    "s sec second": ("1", {"s": 1}), "ms millisecond": ("1/1000", {"s": 1}), "ns nanosecond": ("1e-9", {"s": 1}),
    "\\mus μs µs microsecond": ("1e-6", {"s": 1}), "min minute": ("60", {"s": 1}), "h hr hour": ("3600", {"s": 1}),
    "d day": ("86400", {"s": 1}), "wk week": ("604800", {"s": 1}), "month": ("1", {"month": 1}),
    "yr year": ("12", {"month": 1}), "decade": ("120", {"month": 1}), "century centurie": ("1200", {"month": 1}),
    "Myr": ("12e6", {"month": 1}), "Gyr": ("12e9", {"month": 1}),
    "Hz hertz": ("1", {"s": -1}), "kHz": ("1000", {"s": -1}), "MHz": ("1e6", {"s": -1}), "GHz": ("1e9", {"s": -1}),
    "N newton": ("1000", {"g": 1, "m": 1, "s": -2}), "kN": ("1e6", {"g": 1, "m": 1, "s": -2}),
    "J joule": ("1000", {"g": 1, "m": 2, "s": -2}), "kJ kilojoule": ("1e6", {"g": 1, "m": 2, "s": -2}),
    "MJ": ("1e9", {"g": 1, "m": 2, "s": -2}), "erg": ("1e-4", {"g": 1, "m": 2, "s": -2}),
    "eV electronvolt": ("1", {"eV": 1}), "keV": ("1e3", {"eV": 1}), "MeV": ("1e6", {"eV": 1}),
    "GeV": ("1e9", {"eV": 1}), "cal calorie": ("1", {"cal": 1}), "kcal kilocalorie": ("1000", {"cal": 1}),
    "W watt": ("1000", {"g": 1, "m": 2, "s": -3}), "kW kilowatt": ("1e6", {"g": 1, "m": 2, "s": -3}),
    "MW megawatt": ("1e9", {"g": 1, "m": 2, "s": -3}), "mW milliwatt": ("1", {"g": 1, "m": 2, "s": -3}),
    "Pa pascal": ("1000", {"g": 1, "m": -1, "s": -2}), "kPa": ("1e6", {"g": 1, "m": -1, "s": -2}),
    "MPa": ("1e9", {"g": 1, "m": -1, "s": -2}), "GPa": ("1e12", {"g": 1, "m": -1, "s": -2}),
    "atm": ("101325000", {"g": 1, "m": -1, "s": -2}), "bar": ("1e8", {"g": 1, "m": -1, "s": -2}),
    "A amp ampere": ("1", {"A": 1}), "mA": ("1/1000", {"A": 1}), "C coulomb": ("1", {"A": 1, "s": 1}),
    "V volt": ("1", {"V": 1}), "kV": ("1000", {"V": 1}), "mV": ("1/1000", {"V": 1}),
    "\\Omega Ω ohm": ("1", {"V": 1, "A": -1}), "F farad": ("1", {"F": 1}), "T tesla": ("1", {"T": 1}),
    "K kelvin": ("1", {"K": 1}), "celsius centigrade": ("1", {"celsius": 1}), "fahrenheit": ("1", {"fahrenheit": 1}),
    "L l liter litre": ("1/1000", {"m": 3}), "mL ml milliliter millilitre cc": ("1e-6", {"m": 3}),
    "cL": ("1e-5", {"m": 3}), "dL": ("1e-4", {"m": 3}), "gal gallon": ("0.003785411784", {"m": 3}),
    "qt quart": ("0.000946352946", {"m": 3}), "pint": ("0.000473176473", {"m": 3}), "cup": ("1", {"cup": 1}),
    "ha hectare": ("10000", {"m": 2}), "acre": ("4046.8564224", {"m": 2}),
    "mph": ("0.44704", {"m": 1, "s": -1}), "kph kmph": ("5/18", {"m": 1, "s": -1}), "knot": ("1", {"knot": 1}),
    f"{DOLLAR} dollar usd buck": ("1", {"dollar": 1}), "¢ cent": ("1/100", {"dollar": 1}),
    "€ euro eur": ("1", {"euro": 1}), "£ gbp": ("1", {"sterling": 1}), "pence penny pennie": ("1/100", {"sterling": 1}),
    "¥ yen jpy": ("1", {"yen": 1}), "yuan rmb cny": ("1", {"yuan": 1}), "₹ rupee rs inr": ("1", {"rupee": 1}),
    "ruble rouble": ("1", {"ruble": 1}), "peso": ("1", {"peso": 1}), "franc": ("1", {"franc": 1}),
    "% percent percentage pct": ("1/100", {"percent": 1}), "rad radian": ("1", {"radian": 1}),
    "^\\circ degree deg": ("1", {"degree": 1}), "arcmin arcminute": ("1/60", {"degree": 1}),
    "arcsec arcsecond": ("1/3600", {"degree": 1}), "rpm": ("1", {"rpm": 1}), "rev revolution": ("1", {"revolution": 1}),
    "mol mole": ("1", {"mol": 1}), "M molar": ("1", {"molar": 1}), "bit": ("1", {"bit": 1}), "byte": ("8", {"bit": 1}),
    "dB decibel": ("1", {"decibel": 1}), "mag magnitude": ("1", {"magnitude": 1}),
}  # fmt: skip
_BY_NAME = {name: row for names, row in _UNITS.items() for name in names.split()}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SAY_NOTHING = frozenset(
    "unit units of the a an in on at each total exactly about approximately only per is are was and away long tall wide"
    " high deep old fast way ways number value possible different distinct such more less than times time".split()
)
_WORDS_LIKE_VARIABLES = frozenset("pi if for when where mod and or in is to".split())

_TOKEN = re.compile(
    r"\s*(?:(?P<word>(?:\\(?:AA|Omega|mu *(?:\\text\{)?[A-Za-z]?\}?)|\\text\{[^{}]*\}|[A-Za-zµμÅΩ$€£¥₹¢＄-]+)\.?)"
    r"|(?P<percent>%)|(?P<degree>\^\\circ)|\^ *\{?(?P<power>-?\d)\}?|(?P<over>/)|(?P<times>\\cdot|\\times|·))"
)
_TAIL = re.compile(
    r"(?:\s*(?:\\text\{[^{}]*\}|(?<![\\A-Za-z])[A-Za-zµμÅΩ$€£¥₹¢＄-]+\.?|\\(?:AA|Omega|mu)(?![A-Za-z])|%|\^\\circ|\^ *\{?-?\d\}?|/"
    r"|\\cdot|\\times))+\s*$"
)  # fmt: skip
_CURRENCY = re.compile(rf"([-+]?)\s*(?:US|U\.S\.)?([{DOLLAR}€£¥₹])\s*(.*)")
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
_BASE = re.compile(
    r"\(?\s*(?:\\overline\{)?(?P<digits>-?[0-9A-Fa-f][0-9A-Fa-f. ,]*)\}?\s*\)?\s*"
    r"(?:_ *\{?\s*(?:base\s*)?\(?(?P<low>\d{1,2}|[a-z]{3,7})\)?\s*\}?|,?\s*\(?\s*(?:in\s+)?base[\s-]*(?P<named>\d{1,2}|[a-z]{3,7})\s*\)?)"
)
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s*m\.?|(?:o'?clock|hours|h))?", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """`scale` of the base units `powers`; `words` are nouns that are no units, as apples.

    `certain`: it is no product of variables, as "5 m" in mathematics may be.
    """

    scale: Fraction
    powers: Mapping[str, int]
    words: frozenset[str] = frozenset()
    certain: bool = True


def quantity(text: str) -> tuple[str, Unit | None]:
    """The value of a canonical text and the unit behind it (or before it, as $5); None if there is none."""
    if currency := _CURRENCY.fullmatch(text):
        value, behind = quantity(currency[3])
        scale, powers = _row(currency[2])
        factor = behind.scale if behind and not behind.powers and not behind.words else Fraction(1)
        return currency[1] + value, Unit(scale * factor, powers)
    tail = _TAIL.search(text)
    while tail and tail.start() > 0:
        value, unit = text[: tail.start()].strip(), text_unit(tail[0])
        after_letter = tail[0].lstrip().startswith("\\text") and re.search(r"[A-Za-z]$", value)
        power = re.match(r"\s*\^(?! *\{? *\\circ)", tail[0])  # of the value, no unit's
        if unit and not power and (after_letter or re.search(r"[\d})\]]$", value)):
            letters = re.fullmatch(r"\s*[A-Za-z]+\s*", tail[0])
            spaced = tail[0][:1].isspace()
            if not (letters and not spaced and len(tail[0].strip()) < 2):
                return value, unit
        tail = _TAIL.search(text, tail.start() + 1 + len(tail[0]) - len(tail[0].lstrip()))
    return text, None


def text_unit(text: str) -> Unit | None:
    """The unit that a canonical text spells; None for what may be no unit, as a product of variables."""
    scale, powers, words, certain = Fraction(1), dict[str, int](), set[str](), True
    sign, last, place, next_power, said = 1, dict[str, int](), 0, 1, False
    last_scale = Fraction(1)
    text = text.strip()
    while place < len(text):
        token = _TOKEN.match(text, place)
        if not token:
            return None
        place = token.end()
        if token["over"]:
            sign = -1
            continue
        if token["times"]:
            continue
        if token["power"]:
            power = int(token["power"])
            for name, count in last.items():
                powers[name] = powers.get(name, 0) + count * (power - 1)
            scale *= last_scale ** (power - 1)
            continue
        raw = token["word"] or token["percent"] or token["degree"]
        upright = "\\text" in raw
        for word in unwrapped(raw).replace("\\mu ", "\\mu").split():
            if word.lower().strip(".") in ("per", "an", "a") and upright | (len(word) == 3):
                sign = -1 if word.lower() == "per" else sign
                continue
            pieces = [piece for piece in re.split(r"(/|\^\{?-?\d\}?)", word) if piece]
            for piece in pieces:
                if piece == "/":
                    sign = -1
                    continue
                if exponent := re.fullmatch(r"\^\{?(-?\d)\}?", piece):
                    for name, count in last.items():
                        powers[name] = powers.get(name, 0) + count * (int(exponent[1]) - 1)
                    scale *= last_scale ** (int(exponent[1]) - 1)
                    continue
                name = piece.strip(".,;:()-")
                lower = name.lower()
                if lower in ("square", "sq", "squared", "cubic", "cubed", "cu"):
                    power = 2 if lower.startswith("sq") else 3
                    if lower in ("squared", "cubed"):
                        for one, count in last.items():
                            powers[one] = powers.get(one, 0) + count * (power - 1)
                        scale *= last_scale ** (power - 1)
                    else:
                        next_power = power
                    said = True
                    continue
                if lower in _SCALES:
                    scale, said = scale * _SCALES[lower] ** sign, True
                    continue
                row = _row(name)
                if row and powers == {"degree": 1} and name in ("C", "F"):
                    powers, row = {}, _BY_NAME["celsius" if name == "C" else "fahrenheit"]
                    row = Fraction(1), row[1]
                if row:
                    if not upright and len(name) == 1 and name.isalpha():
                        certain = False
                    last = {one: count * next_power * sign for one, count in row[1].items()}
                    last_scale = row[0] ** (next_power * sign)
                    next_power, said = 1, True
                    scale *= last_scale
                    for one, count in last.items():
                        powers[one] = powers.get(one, 0) + count
                elif lower in _SAY_NOTHING and (upright or lower not in _WORDS_LIKE_VARIABLES and len(lower) > 1):
                    said, last, last_scale = True, {}, Fraction(1)
                elif len(name) > 2 and name.isalpha() and (lower not in _WORDS_LIKE_VARIABLES) or (upright and len(name) > 1):
                    words.add(_singular(lower))
                    said, last, last_scale, next_power = True, {}, Fraction(1), 1
                else:
                    return None
    if not said:
        return None
    return Unit(scale, {one: count for one, count in powers.items() if count}, frozenset(words), certain)


def contradict(one: Unit, two: Unit) -> bool:
    """Whether two units are not of one kind; nouns beside units are not compared, as in 5 dollars per apple."""
    kinds = one.powers, two.powers
    if {"degree": 1} in kinds and ({"celsius": 1} in kinds or {"fahrenheit": 1} in kinds):
        return False
    if one.powers or two.powers:
        return one.powers != two.powers and bool(one.powers or one.words) and bool(two.powers or two.words)
    return bool(one.words and two.words) and not one.words & two.words


def based(text: str) -> tuple[str, int] | None:
    """Digits and base of a canonical number in another base, as 2516_8 or 2516 base 8."""
    match = _BASE.fullmatch(unwrapped(text).strip())
    if not match:
        return None
    name = (match["low"] or match["named"]).lower()
    base = int(name) if name.isdigit() else _BASE_WORDS.get(name, 0)
    digits = re.sub(r"[ ,]", "", match["digits"]).upper()
    plain = digits.lstrip("-")
    if not 2 <= base <= 36 or not re.search(r"\d", plain) or not plain[:1].isdigit() and len(plain) == 1:
        return None
    if any(int(one, 16) >= base for one in plain if one != "."):
        return None
    return digits.replace("-", "-") if plain == "0" else _without_zeros(digits), base


def time_of_day(text: str) -> tuple[int, int, int, str] | None:
    """Hours, minutes, seconds and "a", "p" or "" of 11:30, 11:30 a.m.; None for what is no time."""
    match = _TIME.fullmatch(unwrapped(text).strip())
    if not match or int(match[1]) > 24 or int(match[2]) > 59 or int(match[3] or 0) > 59:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").lower()


def same_time(one: tuple[int, int, int, str], two: tuple[int, int, int, str]) -> bool:
    """Equal; where one does not say a.m. or p.m., as on a clock's face or on 24 hours."""
    if one[3] and two[3] or not (one[3] or two[3]):
        return one == two
    said, other = (one, two) if one[3] else (two, one)
    hours = said[0] % 12 + (12 if said[3] == "p" else 0)
    return (other[0] in (said[0], hours)) and said[1:3] == other[1:3]


def _row(name: str) -> tuple[Fraction, Mapping[str, int]] | None:
    for form in (name, name.lower() if len(name) > 2 else name, _singular(name.lower()) if len(name) > 2 else name):
        if row := _BY_NAME.get(form):
            return Fraction(row[0]), row[1]
    return None


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _without_zeros(digits: str) -> str:
    sign, plain = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    return sign + (plain.lstrip("0") or "0")
