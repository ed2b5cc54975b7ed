"""Names and equations around values, as x = 5, f(x) = 2x or x = 1/3 \\approx 0.33, and words for no value."""

from __future__ import annotations

import re

from megatron_probsft.grading.mathematics.notation import squeezed
from megatron_probsft.grading.mathematics.sets import split_outside
from megatron_probsft.grading.mathematics.shapes import bracketed

EQUALS = re.compile(r"(?<![<>!:])=(?!=)")
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
_EMPTY = re.compile(
    r"\\emptyset|\\\{\\\}|(?:the)?emptyset|null(?:set)?"
    r"|(?:thereare|thereis|ithas)?no(?:real|integer|positive|such|valid|possible)*"
    r"(?:solutions?|roots?|values?|numbers?|integers?)"
    r"(?:exist|exists)?|nosolutions?exist|none|dne|doesnotexist"
)
_SYMBOL = r"\\?[A-Za-z](?:_\{?\w+\}?)?"
_NAME = re.compile(
    r"\\?[A-Za-z](?:_\{?[\w\\ ,+-]+\}?)?'*"  # x, x_1, \alpha, m_{\max}
    r"|\\?[A-Za-z](?:_\w)?'*(?:\^\{-1\})?\([^=()]*\)"  # f(x), f_1(x), f^{-1}(x), P(A)
    r"|\\(?:lim|sum|prod|int|max|min)(?![A-Za-z]).*|\\frac\{d\w?\}\{d\w\}.*"
    r"|[A-Z]{2,5}(?:_\{?\w+\}?)?|\|[A-Z]{2}\||\\frac\{[A-Z]{1,3}\}\{[A-Z]{1,3}\}"
    r"|\\(?:angle|overline|triangle|vec|widehat|hat|bar)\s*\{?[A-Z_\d{} ]*\}?"
    rf"|\((?:\s*{_SYMBOL}\s*,)+\s*{_SYMBOL}\s*\)|{_SYMBOL}\s*:\s*{_SYMBOL}"  # (x, y), V_1:V_2
    r"|\\text\{[^{}]*\}"
    r"|(?i:answer|ans|area|total|sum|volume|perimeter|probability|max|min|slope|length|distance)"
    r"|\\[A-Za-z]+(?:_\{?[\w\\ ]+\}?)?"
)


def split_name(text: str) -> tuple[str | None, str]:
    """Return (x, 5) for x = 5 and for x \\in \\{5\\}; (None, the text) where nothing is named."""
    if belongs := re.fullmatch(r"\s*(\\?[A-Za-z](?:_\w)?)\s*\\in(?![A-Za-z])\s*(.+)", text):
        return belongs[1], belongs[2]
    approximate = re.fullmatch(r"([^=]+?)\s*\\approx(?![A-Za-z])\s*(.+)", text)
    if approximate and _NAME.fullmatch(approximate[1].strip()):
        return approximate[1].strip(), approximate[2]
    sides = split_outside(text, EQUALS)
    for place in {0, max(0, len(sides) - 2)}:  # also 1 = … = x = 0
        name = sides[place].strip()
        if len(sides) > place + 1 and _NAME.fullmatch(name) and name not in ("\\pi", "e", "i"):
            return name, "=".join(sides[place + 1 :]).strip()
    return None, text


def is_equation(text: str) -> bool:
    """Tell whether a text has an equals sign outside brackets."""
    return len(split_outside(text, EQUALS)) > 1


def is_empty(text: str) -> bool:
    """Tell whether an answer says that there is no value."""
    return _EMPTY.fullmatch(squeezed(split_name(text)[1]).lower()) is not None


def same_name(one: str, two: str) -> bool:
    """Tell whether two names are the same; y and f(x) are, too."""
    names = squeezed(one).lower(), squeezed(two).lower()
    return names[0] == names[1] or ("y" in names and bool({"f(x)", "y(x)"} & {*names}))


def rename_variable(name: str, value: str, other: str) -> str | None:
    """Return the value of f(t) as one of f(x); None for names that differ in more than the variable."""
    one, two = (re.fullmatch(r"([A-Za-z]\w?)\(([A-Za-z])\)", squeezed(side)) for side in (name, other))
    if not one or not two or one[1] != two[1] or re.search(rf"(?<![\\A-Za-z]){two[2]}(?![A-Za-z])", value):
        return None
    return re.sub(rf"(?<![\\A-Za-z]){one[2]}(?![A-Za-z])", two[2], value)


def name_parts(name: str) -> list[str]:
    """Return the names inside a tuple of names, (x, y), or the one name itself."""
    inside = bracketed(name)
    return [squeezed(one).lower() for one in inside[1]] if inside else [squeezed(name).lower()]


def with_names(pieces: list[str], names: list[str] | None) -> list[str]:
    """Return values in the order of names, where both are given."""
    if not names:
        return pieces
    named = {squeezed(name).lower(): value for name, value in map(split_name, pieces) if name}
    return [named[name] for name in names] if set(named) == set(names) else pieces


def shared_name(pieces: list[str]) -> list[str]:
    """Drop a name that all values share: n = 2, 3, 4 is 2, 3, 4, and x = 1, x = 2 is 1, 2."""
    named = [split_name(piece) for piece in pieces]
    names = {squeezed(name).lower() for name, _ in named if name}
    bare = [name is None for name, _ in named]
    if not names:
        return pieces
    indexed = len(names) == len(pieces) and {re.sub(r"_.*", "", name) for name in names} == {min(names)[:1]}
    if (len(names) == 1 and not bare[0]) or (indexed and not any(bare)):
        return [value for _, value in named]
    return pieces


def last_equation(text: str) -> str:
    """Return the last equation of a chain: b = c of a = b = c."""
    sides = split_outside(text, EQUALS)
    return "=".join(sides[-2:])


def chain_ends(text: str) -> list[str]:
    """Return the last exact value of a = b \\approx c, and the approximate one."""
    exact, *approximate = [piece.strip() for piece in split_outside(text, _APPROXIMATELY)]
    ends = [split_outside(exact, EQUALS)[-1].strip()]
    ends += [split_outside(piece, EQUALS)[-1].strip() for piece in approximate[-1:]]
    return [end for end in ends if end]
