"""Shapes of canonical answers: lists, sets, tuples, matrices and words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from megatron_probsft.grading.mathematics.notation import inside_braces, squeezed, unwrapped
from megatron_probsft.grading.mathematics.sets import is_set, split_outside

COMMA, SEMICOLON, COLON = re.compile(","), re.compile(";"), re.compile(":")
_AND_OR = re.compile(
    r",?\s*(?:\\text\{[ ,]*(?:and|or)[ ,]*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
    r"|(?<=[\d)])(?:and|or)(?=[\d(A-Za-z\\-]))"
)
_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\{([pbB]?matrix|smallmatrix|array)\}\s*(?:\{[lcr| ]*\})?(.*)\\end\{\1\}\s*[)\]]?",
    re.DOTALL,
)
_SYSTEM = re.compile(r"\\begin\{(cases|aligned|gathered)\}([^&]*)\\end\{\1\}", re.DOTALL)
_BELONGS_TO_NUMBERS = re.compile(r"\s*\\?[A-Za-z](?:_\w)?\s*\\in\s*\\mathbb\{[RZNQC]\}.*")


def items(text: str, *, every_comma: bool = False) -> list[str]:
    """Return what a canonical text lists; a \\pm gives both, and what is no list, as (1, 2), one."""
    inside = braces(text)
    if inside is not None:
        text, every_comma = inside, every_comma or not thousands(inside)
    if len(pieces := split_at(text, SEMICOLON)) > 1:
        return [sign for piece in pieces for sign in both_signs(piece)]
    pieces = [piece for part in split_at(text, _AND_OR) for piece in _commas(part, every_comma=every_comma)]
    kept = [piece for piece in pieces if not _BELONGS_TO_NUMBERS.fullmatch(piece)] or pieces
    return [sign for piece in kept for sign in both_signs(piece)]


def both_signs(text: str) -> list[str]:
    """Return an answer with \\pm as two: the one with plus and the one with minus."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return [re.sub(r"(^|[=(\[{,])(\s*)\+", r"\1\2", plus), minus]


def match_all(found: Sequence[str], wanted: Sequence[str], equal: Callable[[str, str], bool]) -> bool:
    """Tell whether each wanted answer is met by one of the found ones, and none is left over."""
    left = list(found)
    if len(left) != len(wanted):
        return False
    for one in wanted:
        hit = next((other for other in left if equal(other, one)), None)
        if hit is None:
            return False
        left.remove(hit)
    return True


def same_words(found: str, wanted: str) -> bool | None:
    """Tell whether two answers in words are the same, in any case; None if they are no words."""
    one, two = (word(text) for text in (found, wanted))
    if one is None or two is None:
        return None
    if len(one) == 1 or len(two) == 1:
        letters = [re.sub(r"[()\s]", "", unwrapped(text)) for text in (found, wanted)]
        return True if letters[0] == letters[1] else None
    if one == two:
        return True
    return False if "\\text" in found + wanted or " " in (found + wanted).strip() else None


def split_at(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Split a text where a pattern matches outside brackets; empty pieces are left out."""
    return [piece.strip() for piece in split_outside(text, pattern) if piece.strip()]


def _commas(text: str, *, every_comma: bool) -> list[str]:
    """Split at commas, but not at one between digits with three behind it, which separates thousands."""
    if not every_comma and thousands(text):
        return [text]
    pieces = split_at(text, COMMA)
    if every_comma and ", " not in text:
        return pieces
    joined: list[str] = []
    for piece, raw in zip(pieces, [one for one in split_outside(text, COMMA) if one.strip()], strict=True):
        tail = re.match(r"\d{3}(?!\d)", raw)
        if joined and tail and re.search(r"(?<![\d.,])\d{1,3}(?:,\d{3})*$", joined[-1]) and _mixes(text):
            joined[-1] += "," + piece
        else:
            joined.append(piece)
    return joined


def _mixes(text: str) -> bool:
    """Tell whether commas of thousands stand beside those of a list: "1,234, 5,678" or "1,234 dollars"."""
    return ", " in text or re.fullmatch(r"[^,]*,\d{3}(?!\d)[^,]*", text) is not None


def thousands(text: str) -> bool:
    """Tell whether a text may be one number with separators of thousands."""
    return re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", squeezed(text)) is not None and ", " not in text


def decimal_comma(one: str, two: str) -> bool:
    """Tell whether 2,74 stands for 2.74: its comma can part neither thousands nor answers of a list."""
    return re.fullmatch(r"-?(?:\d+,(?!\d{3}$)|0,)\d+", one) is not None and one.replace(",", ".") == two


def no_zeros(pieces: Sequence[str]) -> bool:
    """Tell whether no piece begins with a zero before another digit, as 07 does."""
    return not any(re.match(r"0\d", piece) for piece in pieces)


def braces(text: str) -> str | None:
    """Return the content of \\{…\\} around a whole text; None if there are no such braces."""
    whole = text.startswith("\\{") and text.endswith("\\}") and inside_braces(text, 1) == len(text)
    return text[2:-2].strip() if whole else None


def bracketed(text: str) -> tuple[str, list[str]] | None:
    """Return the bracket around a whole text and what stands between commas in it."""
    text = text.strip()
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and inside_braces(text, 0) == len(text):
        inner = text[1:-1]
        pieces = split_at(inner, SEMICOLON)
        return text[0], pieces if len(pieces) > 1 else split_at(inner, COMMA)
    return None


def without_outer(text: str) -> str:
    """Remove brackets around one single answer, and {…}, which does not show."""
    while text[:1] == "{" and inside_braces(text, 0) == len(text):
        text = text[1:-1].strip()
    if system := _SYSTEM.fullmatch(text):
        return ", ".join(line.strip().rstrip(",") for line in system[2].split("\\\\") if line.strip())
    while (inside := bracketed(text)) and len(inside[1]) == 1 and text[0] == "(" and text[-1] == ")":
        inner = text[1:-1].strip()
        if not inner or is_set(inner) or inner == text:
            break
        text = inner
    return text


def matrix(text: str) -> list[list[str]]:
    """Return the rows of a LaTeX matrix, a list of cells each; no rows where there is no matrix."""
    found = _MATRIX.fullmatch(text.strip())
    if not found or "\\begin" in found[2]:
        return []
    rows = [re.sub(r"^\s*\[\d+\w*\]", "", row).replace("\\hline", "") for row in found[2].split("\\\\")]
    return [[cell.strip() for cell in row.split("&")] for row in rows if row.strip()]


def word(text: str) -> str | None:
    """Return an answer in words as small letters, without articles and points; None if it is no words."""
    plain = unwrapped(text).strip()
    if re.search(r"[\d\\=<>^_+*/|{}\[\],]", plain) or not re.search(r"[^\W\d_]", plain):
        return None
    if "\\text" not in text and len(re.findall(r"[^\W\d_]{2,}", plain)) == 0 and len(plain) > 3:
        return None
    words = re.findall(r"[^\W\d_]+", plain.lower())
    return "".join(word for word in words if word not in ("the", "a", "an") or len(words) == 1)


def distinct(pieces: list[str]) -> list[str]:
    """Return the pieces without repetitions; of those alike but for spaces the last one stays."""
    return list({squeezed(piece): piece for piece in pieces}.values())
