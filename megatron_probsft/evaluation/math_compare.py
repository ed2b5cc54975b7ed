"""Are two mathematical answers equal? Their shape is read here: lists, sets, tuples, intervals, matrices, names,
units, bases, times, words. What remains are single expressions, for `Algebra`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from megatron_probsft.evaluation.math_bases import based, same_time, time_of_day
from megatron_probsft.evaluation.math_notation import APART, canonical, inside_braces, squeezed, unwrapped
from megatron_probsft.evaluation.math_numbers import equal_numbers, number
from megatron_probsft.evaluation.math_sets import RealSet, flipped, is_set, real_set, split_outside
from megatron_probsft.evaluation.math_units import Unit, contradict, quantity, text_unit

_COMMA, _SEMICOLON, _COLON = re.compile(","), re.compile(";"), re.compile(":")
_AND_OR = re.compile(
    r",?\s*(?:\\text\{[ ,]*(?:and|or)[ ,]*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|(?<=[\d)])(?:and|or)(?=[\d(A-Za-z\\-]))"
)
_EQUALS = re.compile(r"(?<![<>!:])=(?!=)")
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\{([pbB]?matrix|smallmatrix|array)\}\s*(?:\{[lcr| ]*\})?(.*)\\end\{\1\}\s*[)\]]?",
    re.DOTALL,
)
_SYSTEM = re.compile(r"\\begin\{(cases|aligned|gathered)\}([^&]*)\\end\{\1\}", re.DOTALL)
_EMPTY = re.compile(
    r"\\emptyset|\\\{\\\}|(?:the)?emptyset|null(?:set)?"
    r"|(?:thereare|thereis|ithas)?no(?:real|integer|positive|such|valid|possible)*(?:solutions?|roots?|values?|numbers?|integers?)"
    r"(?:exist|exists)?|nosolutions?exist|none|dne|doesnotexist"
)
_BELONGS_TO_NUMBERS = re.compile(r"\s*\\?[A-Za-z](?:_\w)?\s*\\in\s*\\mathbb\{[RZNQC]\}.*")
_NAME = re.compile(
    r"\\?[A-Za-z](?:_\{?[\w\\ ,+-]+\}?)?'*"  # x, x_1, \alpha, m_{\max}
    r"|\\(?:lim|sum|prod|int|max|min)(?![A-Za-z]).*|\\frac\{d\w?\}\{d\w\}.*|[A-Za-z]\^\{-1\}\([^=()]*\)"
    r"|[A-Z]{2,5}(?:_\{?\w+\}?)?|\|[A-Z]{2}\||\\(?:angle|overline|triangle|vec|widehat|hat|bar)\s*\{?[A-Z_\d{} ]*\}?"
    r"|\\text\{[^{}]*\}|\\?[A-Za-z](?:_\w)?'*\([^=()]*\)|\((?:\s*\\?[A-Za-z](?:_\{?\w+\}?)?\s*,)+\s*\\?[A-Za-z](?:_\{?\w+\}?)?\s*\)"
    r"|\\frac\{[A-Z]{1,3}\}\{[A-Z]{1,3}\}|[A-Za-z](?:_\{?\w+\}?)?\s*:\s*[A-Za-z](?:_\{?\w+\}?)?"
    r"|(?i:answer|ans|area|total|sum|volume|perimeter|probability|max|min|slope|length|distance)"
    r"|\\[A-Za-z]+(?:_\{?[\w\\ ]+\}?)?"
)
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_RADIANS = r"\frac{\pi}{180}"
_SUM_OF_LETTERS = re.compile(
    r"-?[A-Za-z](?:\^\{?\d\}?)?(?:\s*[-+]?\s*[A-Za-z](?:_\{?\w\}?)?(?:\^\{?\d\}?)?)+"
)


class Algebra(Protocol):
    """Decides what shapes cannot. Expressions are canonical, without units, names and lists."""

    def same(self, found: str, wanted: str, tolerance: float | None) -> bool:
        """Whether two expressions, equations or inequalities are equal."""
        ...

    def same_sets(self, found: RealSet, wanted: RealSet) -> bool:
        """Whether two sets of real numbers are equal."""
        ...


class Comparison:
    """Compares answers, with one algebra and the tolerance of one benchmark's answer."""

    def __init__(self, algebra: Algebra, tolerance: float | None = None, unit: str | None = None) -> None:
        self._algebra, self._tolerance = algebra, tolerance
        self._unit = text_unit(canonical(unit)) if unit else None

    def equal(self, found: str, wanted: str, *, several: bool = False) -> bool:
        """Whether an answer is the reference; `several`: every comma of the reference separates."""
        return self._equal(canonical(found), canonical(wanted), several)

    def _equal(self, found: str, wanted: str, several: bool = False) -> bool:
        if not found or not wanted:
            return found == wanted
        if squeezed(found) == squeezed(wanted) and not _units_differ(found, wanted):
            return True
        found, wanted = _without_outer(found), _without_outer(wanted)
        if _is_empty(found) or _is_empty(wanted):
            return _is_empty(found) and _is_empty(wanted)
        if (words := _same_words(found, wanted)) is not None:
            return words
        rows = _matrix(found), _matrix(wanted)
        if rows[0] or rows[1]:
            return self._matrices(found, wanted, *rows)
        if is_set(found) or is_set(wanted):
            sets = self._sets(found, wanted)
            if sets is not None:
                return sets
        if _decimal_comma(squeezed(found), wanted) or _decimal_comma(squeezed(wanted), found):
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
            inside = _bracketed(other)
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
            ambiguous = _thousands(found) and _thousands(wanted) is False and APART not in found
            if not _thousands(wanted) or ambiguous:
                return None
            if not _braces(found):
                return None
        if len(two) > 1 and len(one) == 1:
            name, value = _named(one[0])
            if name and len(items(value, every_comma=True)) > 1 and _bracketed(value) is None:
                one = items(value, every_comma=True)
            elif _thousands(inner := found if (held := _braces(found)) is None else held):
                again = items(inner, every_comma=True)
                one = again if _no_zeros(again) else one
            inside = _bracketed(value if name else found)
            if inside and not _braces(wanted) and (inside[0] == "(" or len(inside[1]) > 2):
                named = _names(name) if name else None
                return self._in_order(inside[1], _with_names(two, named))
        if len(one) > 1 and len(two) == 1:
            name, value = _named(two[0])
            inside = _bracketed(value if name else wanted)
            if inside and not _braces(found) and (inside[0] == "(" or len(inside[1]) > 2):
                named = _names(name) if name else None
                return self._in_order(_with_names(one, named), inside[1])
            if (_thousands(wanted) and (again := items(wanted, every_comma=True)) and _no_zeros(again)) or (
                name and (again := items(value)) and len(again) > 1
            ):
                two = again
        if len(one) == 1 and len(two) == 1:
            return (
                None
                if not (_braces(found) or _braces(wanted))
                else self._one_item(one[0], two[0], found, wanted)
            )
        one, two = _shared_name(one), _shared_name(two)
        if len(one) > len(two) == len(_distinct(two)) or (_braces(found) and _braces(wanted)):
            one, two = _distinct(one), _distinct(two)
        return match_all(one, two, self._equal)

    def _one_item(self, one: str, two: str, found: str, wanted: str) -> bool | None:
        """A set of one number and the number itself: forgiven."""
        return None if (one, two) == (found, wanted) else self._equal(one, two)

    def _tuples(self, found: str, wanted: str) -> bool | None:
        name, value = _named(found)
        other, aim = _named(wanted)
        one, two = _bracketed(value), _bracketed(aim)
        if not one or not two or len(one[1]) < 2 or len(two[1]) < 2:
            return None
        if name and other and _names(name) != _names(other):
            return False
        if len(one[1]) == 2 and one[0] != two[0]:
            return False
        return self._in_order(one[1], two[1])

    def _in_order(self, one: Sequence[str], two: Sequence[str]) -> bool:
        return len(one) == len(two) and all(self._equal(a, b) for a, b in zip(one, two, strict=True))

    def _equations(self, found: str, wanted: str) -> bool:
        name, value = _named(found)
        other, aim = _named(wanted)
        if name and other:
            if _same_name(name, other):
                return self._values(value, aim)
            if renamed := _renamed(name, value, other):
                return self._values(renamed, aim)
            return self._algebra.same(found, wanted, self._tolerance)
        if name and not _is_equation(wanted):
            return self._values(value, wanted)
        if other and not _is_equation(found):
            return self._values(found, aim)
        if _is_equation(found) and not _is_equation(wanted):
            sides = split_outside(found, _EQUALS)
            if not _LETTER.search(found):  # 0.75 = 3/4
                return self._values(found, wanted)
            sums = len(sides) == 2 and _SUM_OF_LETTERS.fullmatch(sides[0].strip())
            return bool(sums) and number(squeezed(wanted)) not in (None, 0) and self._values(sides[1], wanted)
        if _is_equation(wanted) and not _is_equation(found):
            return not _LETTER.search(wanted) and self._values(found, wanted)
        if _is_equation(found):
            return self._algebra.same(_last_equation(found), _last_equation(wanted), self._tolerance)
        return self._values(found, wanted)

    def _values(self, found: str, wanted: str) -> bool:
        """The last values of chains of equations; one that is called approximate counts beside the exact one."""
        one, two = _chain_ends(found), _chain_ends(wanted)
        if one == [found] and two == [wanted]:
            return self._quantities(found, wanted)
        return any(self._equal(end, aim) for end in one for aim in two)

    def _quantities(self, found: str, wanted: str) -> bool:
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
        ratios = _pieces(found, _COLON), _pieces(wanted, _COLON)
        if len(ratios[0]) > 1 and (len(ratios[1]) > 1 or len(ratios[0]) > 2):
            return self._proportional(*ratios)
        (value, unit), (aim, wanted_unit) = quantity(found), quantity(wanted)
        return self._with_units(found, wanted, value, unit, aim, wanted_unit or self._unit)

    def _proportional(self, one: list[str], two: list[str]) -> bool:
        pairs = zip(one[1:], two[1:], strict=False)
        return len(one) == len(two) and all(
            self._expressions(_times(one[0], b), _times(two[0], a)) for a, b in pairs
        )

    def _with_units(
        self, found: str, wanted: str, value: str, unit: Unit | None, aim: str, wanted_unit: Unit | None
    ) -> bool:
        if wanted_unit and not wanted_unit.certain and (unit is None or not unit.certain):
            return self._expressions(found, wanted)  # 5 m may be 5 times m
        unit, value = _scaled(unit, value)
        wanted_unit, aim = _scaled(wanted_unit, aim)
        if unit is None or wanted_unit is None:
            either = unit or wanted_unit
            if self._expressions(value, aim):
                return True
            angle = either is not None and either.powers == {"degree": 1}
            part = either is not None and either.powers == {"percent": 1}
            if not (angle or part) or self._tolerance is not None:
                return False
            factor = _RADIANS if angle else "\\frac{1}{100}"
            if angle and "\\pi" not in value + aim:
                return False
            return self._expressions(
                _times(value, factor if unit else ""), _times(aim, "" if unit else factor)
            )
        if [*unit.powers] == ["degree"] and [*wanted_unit.powers] == ["radian"]:
            return self._expressions(_times(value, _RADIANS), aim)
        if [*unit.powers] == ["radian"] and [*wanted_unit.powers] == ["degree"]:
            return self._expressions(value, _times(aim, _RADIANS))
        if contradict(unit, wanted_unit):
            return False
        if unit.scale == wanted_unit.scale or not unit.powers or not wanted_unit.powers:
            return self._expressions(value, aim)
        return self._expressions(_times(value, _fraction(unit)), _times(aim, _fraction(wanted_unit)))

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


def items(text: str, *, every_comma: bool = False) -> list[str]:
    """What a canonical text lists, of a \\pm both; one that is no list, as 1,234 or (1, 2), is whole."""
    inside = _braces(text)
    if inside is not None:
        text, every_comma = inside, every_comma or not _thousands(inside)
    if len(pieces := _pieces(text, _SEMICOLON)) > 1:
        return [sign for piece in pieces for sign in both_signs(piece)]
    pieces = [piece for part in _pieces(text, _AND_OR) for piece in _commas(part, every_comma=every_comma)]
    kept = [piece for piece in pieces if not _BELONGS_TO_NUMBERS.fullmatch(piece)] or pieces
    return [sign for piece in kept for sign in both_signs(piece)]


def both_signs(text: str) -> list[str]:
    """Of an answer with \\pm the one with plus and the one with minus."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return [re.sub(r"(^|[=(\[{,])(\s*)\+", r"\1\2", plus), minus]


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


def _pieces(text: str, pattern: re.Pattern[str]) -> list[str]:
    return [piece.strip() for piece in split_outside(text, pattern) if piece.strip()]


def _commas(text: str, *, every_comma: bool) -> list[str]:
    """Pieces between commas; a comma between digits with three behind it is a separator of thousands."""
    if not every_comma and _thousands(text):
        return [text]
    pieces = _pieces(text, _COMMA)
    if every_comma and ", " not in text:
        return pieces
    joined: list[str] = []
    for piece, raw in zip(pieces, [one for one in split_outside(text, _COMMA) if one.strip()], strict=True):
        tail = re.match(r"\d{3}(?!\d)", raw)
        if joined and tail and re.search(r"(?<![\d.,])\d{1,3}(?:,\d{3})*$", joined[-1]) and _mixes(text):
            joined[-1] += "," + piece
        else:
            joined.append(piece)
    return joined


def _mixes(text: str) -> bool:
    """Separators of thousands beside separators of a list: "1,234, 5,678" or "1,234 dollars"."""
    return ", " in text or re.fullmatch(r"[^,]*,\d{3}(?!\d)[^,]*", text) is not None


def _thousands(text: str) -> bool:
    """Whether a text may be one number with separators of thousands."""
    return re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", squeezed(text)) is not None and ", " not in text


def _decimal_comma(one: str, two: str) -> bool:
    """2,74 for 2.74, where the comma can part neither thousands nor answers of a list."""
    return re.fullmatch(r"-?(?:\d+,(?!\d{3}$)|0,)\d+", one) is not None and one.replace(",", ".") == two


def _no_zeros(pieces: Sequence[str]) -> bool:
    return not any(re.match(r"0\d", piece) for piece in pieces)


def _braces(text: str) -> str | None:
    """What \\{…\\} around a whole text holds."""
    whole = text.startswith("\\{") and text.endswith("\\}") and inside_braces(text, 1) == len(text)
    return text[2:-2].strip() if whole else None


def _bracketed(text: str) -> tuple[str, list[str]] | None:
    """The bracket around a whole text and what stands between commas in it."""
    text = text.strip()
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and inside_braces(text, 0) == len(text):
        inner = text[1:-1]
        pieces = _pieces(inner, _SEMICOLON)
        return text[0], pieces if len(pieces) > 1 else _pieces(inner, _COMMA)
    return None


def _without_outer(text: str) -> str:
    """Without brackets around one single answer, and without {…}, which does not show."""
    while text[:1] == "{" and inside_braces(text, 0) == len(text):
        text = text[1:-1].strip()
    if system := _SYSTEM.fullmatch(text):
        return ", ".join(line.strip().rstrip(",") for line in system[2].split("\\\\") if line.strip())
    while (inside := _bracketed(text)) and len(inside[1]) == 1 and text[0] == "(" and text[-1] == ")":
        inner = text[1:-1].strip()
        if not inner or is_set(inner) or inner == text:
            break
        text = inner
    return text


def _matrix(text: str) -> list[list[str]]:
    found = _MATRIX.fullmatch(text.strip())
    if not found or "\\begin" in found[2]:
        return []
    rows = [re.sub(r"^\s*\[\d+\w*\]", "", row).replace("\\hline", "") for row in found[2].split("\\\\")]
    return [[cell.strip() for cell in row.split("&")] for row in rows if row.strip()]


def _is_empty(text: str) -> bool:
    return _EMPTY.fullmatch(squeezed(_named(text)[1]).lower()) is not None


def _same_words(found: str, wanted: str) -> bool | None:
    """Whether two answers in words are the same, in any case; None if they are no words."""
    one, two = (word(text) for text in (found, wanted))
    if one is None or two is None:
        if (two and len(two) > 2 and "\\text" in wanted and not re.search(r"\d", found)) and one is None:
            return None
        return None
    if len(one) == 1 or len(two) == 1:
        letters = [re.sub(r"[()\s]", "", unwrapped(text)) for text in (found, wanted)]
        return True if letters[0] == letters[1] else None
    if one == two:
        return True
    return False if "\\text" in found + wanted or " " in (found + wanted).strip() else None


def word(text: str) -> str | None:
    """The letters of an answer in words, small and without articles and points; None for what is none."""
    plain = unwrapped(text).strip()
    if re.search(r"[\d\\=<>^_+*/|{}\[\],]", plain) or not re.search(r"[^\W\d_]", plain):
        return None
    if "\\text" not in text and len(re.findall(r"[^\W\d_]{2,}", plain)) == 0 and len(plain) > 3:
        return None
    words = re.findall(r"[^\W\d_]+", plain.lower())
    return "".join(word for word in words if word not in ("the", "a", "an") or len(words) == 1)


def _is_equation(text: str) -> bool:
    return len(split_outside(text, _EQUALS)) > 1


def _named(text: str) -> tuple[str | None, str]:
    """(x, 5) of x = 5 and of x \\in \\{5\\}; (None, the text) where nothing is named."""
    if belongs := re.fullmatch(r"\s*(\\?[A-Za-z](?:_\w)?)\s*\\in(?![A-Za-z])\s*(.+)", text):
        return belongs[1], belongs[2]
    if approximate := re.fullmatch(r"([^=]+?)\s*\\approx(?![A-Za-z])\s*(.+)", text):
        if _NAME.fullmatch(approximate[1].strip()):
            return approximate[1].strip(), approximate[2]
    sides = split_outside(text, _EQUALS)
    for place in {0, max(0, len(sides) - 2)}:  # also 1 = … = x = 0
        name = sides[place].strip()
        if len(sides) > place + 1 and _NAME.fullmatch(name) and name not in ("\\pi", "e", "i"):
            return name, "=".join(sides[place + 1 :]).strip()
    return None, text


def _same_name(one: str, two: str) -> bool:
    """Also y and f(x)."""
    names = squeezed(one).lower(), squeezed(two).lower()
    return names[0] == names[1] or ("y" in names and bool({"f(x)", "y(x)"} & {*names}))


def _renamed(name: str, value: str, other: str) -> str | None:
    """The value of f(t) as one of f(x); None for names that differ in more than the variable."""
    one, two = (re.fullmatch(r"([A-Za-z]\w?)\(([A-Za-z])\)", squeezed(side)) for side in (name, other))
    if not one or not two or one[1] != two[1] or re.search(rf"(?<![\\A-Za-z]){two[2]}(?![A-Za-z])", value):
        return None
    return re.sub(rf"(?<![\\A-Za-z]){one[2]}(?![A-Za-z])", two[2], value)


def _names(name: str) -> list[str]:
    inside = _bracketed(name)
    return [squeezed(one).lower() for one in inside[1]] if inside else [squeezed(name).lower()]


def _with_names(pieces: list[str], names: list[str] | None) -> list[str]:
    """Values in the order of names, where both are given."""
    if not names:
        return pieces
    named = {squeezed(name).lower(): value for name, value in map(_named, pieces) if name}
    return [named[name] for name in names] if set(named) == set(names) else pieces


def _shared_name(pieces: list[str]) -> list[str]:
    """n = 2, 3, 4 and x = 1, x = 2 are 2, 3, 4 and 1, 2: a name that is one for all says nothing."""
    named = [_named(piece) for piece in pieces]
    names = {squeezed(name).lower() for name, _ in named if name}
    bare = [name is None for name, _ in named]
    if not names:
        return pieces
    indexed = len(names) == len(pieces) and {re.sub(r"_.*", "", name) for name in names} == {min(names)[:1]}
    if (len(names) == 1 and not bare[0]) or (indexed and not any(bare)):
        return [value for _, value in named]
    return pieces


def _distinct(pieces: list[str]) -> list[str]:
    return list({squeezed(piece): piece for piece in pieces}.values())


def _last_equation(text: str) -> str:
    sides = split_outside(text, _EQUALS)
    return "=".join(sides[-2:])


def _chain_ends(text: str) -> list[str]:
    """The last exact value of a = b \\approx c, and the approximate one."""
    exact, *approximate = [piece.strip() for piece in split_outside(text, _APPROXIMATELY)]
    ends = [split_outside(exact, _EQUALS)[-1].strip()]
    ends += [split_outside(piece, _EQUALS)[-1].strip() for piece in approximate[-1:]]
    return [end for end in ends if end]


def _units_differ(found: str, wanted: str) -> bool:
    """Texts alike but for what squeezing drops: 90^\\circ and 90."""
    return False


def _scaled(unit: Unit | None, value: str) -> tuple[Unit | None, str]:
    """3 million is 3000000: what is no unit but a number goes into the value."""
    if unit is None or unit.powers or unit.scale == 1:
        return (None if unit and not unit.powers and not unit.words else unit), value
    plain = Unit(unit.scale / unit.scale, {}, unit.words)
    return (plain if unit.words else None), _times(value, str(unit.scale))


def _fraction(unit: Unit) -> str:
    return rf"\frac{{{unit.scale.numerator}}}{{{unit.scale.denominator}}}"


def _times(value: str, factor: str) -> str:
    if not factor:
        return value
    one, two = number(squeezed(value)), number(squeezed(factor))
    if one is None or two is None:
        return rf"({value}) \cdot ({factor})"
    product = one * two
    return (
        str(product.numerator)
        if product.denominator == 1
        else rf"\frac{{{product.numerator}}}{{{product.denominator}}}"
    )
