"""Sets of real numbers as answers write them: intervals, unions, inequalities, all but some numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_probsft.grading.mathematics.notation import inside_braces, squeezed, unwrapped

_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|(?<!\\)<|(?<!-)>")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?")
_BELONGS = re.compile(r"\s*(\\?[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*\\in(?![A-Za-z])\s*(.+)")
_REAL = re.compile(r"\s*\\?[A-Za-z](?:_\w)?\s*\\in\s*\\mathbb\{R\}\s*")
_BUILDER = re.compile(r"\\\{\s*(\\?[A-Za-z])(?:\s*\\in\s*\\mathbb\{R\})?\s*(?:\||:)\s*(.+?)\s*\\\}")
_ALL = re.compile(r"\\mathbb\{R\}|(?:\\text\{)?(?:all )?reals?(?: numbers?)?\}?", re.IGNORECASE)
_OR = re.compile(r"\\cup(?![A-Za-z])|\\text\{ *or *\}|(?<![A-Za-z\\])or(?![A-Za-z])")
_AND = re.compile(r"\\cap(?![A-Za-z])|\\text\{ *and *\}|(?<![A-Za-z\\])and(?![A-Za-z])")
_MINUS = re.compile(
    r"\\setminus(?![A-Za-z])|\\(?=\\\{)|(?<=\\mathbb\{R\})\s*-\s*(?=\\\{)|(?<=[\])])\s*-\s*(?=\\\{)"
)


@dataclass(frozen=True)
class Interval:
    """An interval has two ends, as texts; `closed` says of each whether it belongs to the interval."""

    ends: tuple[str, str]
    closed: tuple[bool, bool]


@dataclass(frozen=True)
class Points:
    """A finite set of numbers, as they are written."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """An inequality that is not solved for its variable, as |x| < 3; for algebra."""

    text: str


@dataclass(frozen=True)
class Combined:
    """Sets are combined by `how`: or (union), and (intersection), minus (the first without the others)."""

    how: str
    parts: tuple[RealSet, ...]


RealSet = Interval | Points | Relation | Combined
EVERYTHING = Interval(("-\\infty", "\\infty"), (False, False))


def split_outside(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the pieces of a text between the matches of `pattern` outside of brackets."""
    pieces, begin, place = [], 0, 0
    while place < len(text):
        if text[place] in "([{":
            end = inside_braces(text, place)
            if end > 0:
                place = end
                continue
        match = pattern.match(text, place)
        if match and match.end() > place:
            pieces.append(text[begin:place])
            begin = place = match.end()
            continue
        place += 1
    return [*pieces, text[begin:]]


def is_set(text: str) -> bool:
    """Tell whether a canonical text can only be a set of real numbers; (1, 2) and {1, 2} may be others."""
    return bool(
        re.search(r"\\(?:cup|cap|setminus|le|ge|ne)(?![A-Za-z])|[<>]|\\mathbb\{R\}", text)
        or re.fullmatch(r"[(\[\]][^()\[\]]*\\infty *[)\]\[]|[(\[\]] *-\\infty[^()\[\]]*[)\]\[]", text)
        or (re.fullmatch(r"\(.*\]|\[.*\)", text) and inside_braces(text, 0) == len(text))
        or re.fullmatch(r"\][^\[\]]*[\[\]]|\[[^\[\]]*\[", text)
        or re.fullmatch(r"[^,]*\\in(?![A-Za-z]) *[(\[].*", text)
        or _ALL.fullmatch(text)
    )


def real_set(text: str) -> tuple[str | None, RealSet] | None:
    """Return (the variable if one is named, the set) of a canonical text; None if it is no such set."""
    text = text.strip()
    if _ALL.fullmatch(text):
        return None, EVERYTHING
    if builder := _BUILDER.fullmatch(text):
        inner = real_set(builder[2])
        return inner and (None, inner[1])
    commas = split_outside(text, re.compile(r"[,;]"))
    if len(commas) > 1 and (kept := [piece for piece in commas if not _REAL.fullmatch(piece)]) != commas:
        return real_set(", ".join(kept)) if kept else None
    if belongs := _BELONGS.fullmatch(text):
        inner = real_set(belongs[2])
        if inner and inner[0] in (None, squeezed(belongs[1])):
            return squeezed(belongs[1]), inner[1]
        return None
    for how, pattern in (("or", _OR), ("and", _AND), ("minus", _MINUS)):
        pieces = split_outside(text, pattern)
        if len(pieces) > 1:
            return _combined(how, pieces)
    if len(commas) > 1 and all(_RELATION.search(piece) for piece in commas):
        nots = all("\\ne" in piece for piece in commas)
        return _combined("and" if nots or _bounded(commas) else "or", commas)
    if len(commas) > 1 and "\\ne" in commas[0] and not any(_RELATION.search(piece) for piece in commas[1:]):
        head = re.split(r"\\ne(?![A-Za-z])", commas[0])[0]  # x ≠ 1, 2
        return _combined("and", [commas[0], *(f"{head} \\ne {piece}" for piece in commas[1:])])
    return _single(text)


def flipped(text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return terms and signs of a chain of inequalities, turned to < and \\le; None if it is no chain."""
    terms = split_outside(text, _RELATION)
    if len(terms) < 2:
        return None
    signs = tuple(_RELATION.findall(_flat(text)))
    if len(signs) != len(terms) - 1:
        return None
    if any(sign in (">", "\\ge") for sign in signs):
        terms, signs = terms[::-1], tuple(_FLIPPED[sign] for sign in signs[::-1])
    return tuple(term.strip() for term in terms), signs


def _flat(text: str) -> str:
    """Return the text with its brackets emptied."""
    flat, place = "", 0
    while place < len(text):
        end = inside_braces(text, place) if text[place] in "([{" else -1
        flat, place = (flat + "()", end) if end > 0 else (flat + text[place], place + 1)
    return flat


def _combined(how: str, pieces: list[str]) -> tuple[str | None, RealSet] | None:
    parts = [real_set(piece) for piece in pieces]
    if how == "or" and parts[0] and parts[0][0]:  # x < 1 or > 3
        parts = [one or real_set(f"{parts[0][0]} {piece}") for one, piece in zip(parts, pieces, strict=True)]
    known = [one for one in parts if one]
    names = {one[0] for one in known if one[0]}
    if len(known) != len(pieces) or len(names) > 1:
        return None
    return next(iter(names), None), Combined(how, tuple(one[1] for one in known))


def _bounded(pieces: list[str]) -> bool:
    """Tell whether pieces mean what lies between, as x > 1, x < 3, and not outside, as x < 1, x > 3."""
    ends = []
    for piece in pieces:
        chain = flipped(piece)
        if not chain or len(chain[0]) != 2:
            return False
        low = _VARIABLE.fullmatch(chain[0][1]) is not None and not _VARIABLE.fullmatch(chain[0][0])
        try:
            ends.append((low, float(squeezed(chain[0][0 if low else 1]))))
        except ValueError:
            return True
    lows, highs = [end for low, end in ends if low], [end for low, end in ends if not low]
    return not lows or not highs or max(lows) < min(highs)


def _single(text: str) -> tuple[str | None, RealSet] | None:
    if chain := flipped(text):
        return _chain(text, *chain)
    if re.fullmatch(r"[(\[\]].*[)\]\[]", text, re.DOTALL):
        inner = split_outside(text[1:-1], re.compile(r"[,;]"))
        if len(inner) != 2 or (text[0] == "]" and text[-1] == ")"):
            return None
        return None, Interval((inner[0].strip(), inner[1].strip()), (text[0] == "[", text[-1] == "]"))
    if re.fullmatch(r"\\\{.*\\\}", text, re.DOTALL):
        return None, Points(tuple(piece.strip() for piece in split_outside(text[2:-2], re.compile(r"[,;]"))))
    if equal := re.fullmatch(r"\s*(\\?[A-Za-z](?:_\{?\w+\}?)?)\s*=\s*([^=]+)", text):
        return squeezed(equal[1]), Points((equal[2].strip(),))
    return None


def _chain(text: str, terms: tuple[str, ...], signs: tuple[str, ...]) -> tuple[str | None, RealSet] | None:
    places = [
        place
        for place, term in enumerate(terms)
        if _VARIABLE.fullmatch(unwrapped(term)) and term != "\\infty"
    ]
    if len(places) != 1 or any("=" in term for term in terms):
        if re.search(r"[A-Za-z] *\(", text):
            return None
        letters = set(re.findall(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", text))
        return (letters.pop(), Relation(text)) if len(letters) == 1 and len(terms) <= 3 else None
    [place] = places
    name = squeezed(terms[place])
    if signs == ("\\ne",):
        return name, Combined("minus", (EVERYTHING, Points((terms[1 - place],))))
    if "\\ne" in signs or len(terms) > 3 or (len(terms) == 3 and place != 1):
        return None
    low = (terms[place - 1], signs[place - 1] == "\\le") if place > 0 else ("-\\infty", False)
    high = (terms[place + 1], signs[place] == "\\le") if place < len(terms) - 1 else ("\\infty", False)
    return name, Interval((low[0], high[0]), (low[1], high[1]))
