"""Mathematical answers in one notation, plain LaTeX, however people and models write them.

Unicode, plain text ("sqrt(2)", "3 1/2", "x**2"), spaces, sizes and fonts are brought to one form; nothing
that has a meaning is lost. Everything here takes time about linear in the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from megatron_probsft.grading.markdown import without_markdown
from megatron_probsft.grading.mathematics.symbols import one_spelling, without_unicode

DOLLAR = "＄"  # \$, the currency, once dollar signs around mathematics are dropped
APART = "␣"  # between digits that are no one number

_UPRIGHT = re.compile(
    r"\\(?:text|textrm|textnormal|textsf|textup|textbf|textit|texttt|mathrm|operatorname\*?|mbox|hbox"
    r"|mathsf|rm|emph)\s*\{([^{}]*)\}"
)
_OTHER_FONT = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathit|mathnormal|bold|pmb|underline|uline|mathcal|ensuremath)\s*\{([^{}]*)\}"
    r"|\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*\{([^{}]*)\}|\\color\s*\{[^{}]*\}"
)
_SIZES = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|scriptstyle|limits|[bB]igg?[lrm]?|tiny|small|large|Large"
    r"|bf|it|rm)(?![A-Za-z])\.?"
)
_SPACES = re.compile(
    r"\\[;:, \n]|\\(?:quad|qquad|enspace|thinspace|hfill|newline)(?![A-Za-z])|\\[hv]space\*?\{[^{}]*\}|~|\s"
)
_DELIMITERS = re.compile(r"\\[()\[\]]|\$+")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,)(?:\s*\\!\s*|(?<=\}))(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")
_APART = re.compile(r"(?<=\d)(?<![_^]\d) +(?=\d)(?!\d{3}(?!\d))")  # 5 6 is not 56, but 10 000 is 10000
_MIXED = re.compile(r"(?<![\d.,/^_])(\d{1,9}) +(\d{1,9}) */ *(\d{1,9})(?![\d.])")
_TEXTUAL = (
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "sec", "csc", "cot", "ln",
    "log", "exp", "gcd", "lcm", "pi", "theta", "alpha", "beta", "gamma", "lambda", "infty",
)  # fmt: skip
_BARE_WORD = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_TEXTUAL)})(?![A-Za-z])|(?<=[\d)])(pi|sqrt)(?![A-Za-z])")
_BARE_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])", re.IGNORECASE)
_ROOT_WORD = re.compile(r"\\?(?<![A-Za-z])(sqrt|cbrt)\s*(?=[(\d\w{\[])|√|∛")
_ATOM = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z]")
_LEAD = re.compile(  # what leads to an answer and is none
    r"^ *(?:\\text\{[^{}]*(?:\bis|\bare|\bequals|:|=)\}"
    r"|(?:\\text\{ *)?(?:about|approximately|roughly|nearly)\b *\}?) *(?=\S)"
)


@lru_cache(maxsize=16384)
def canonical(text: str) -> str:
    """Return the answer in one notation, with single spaces, and words and units in \\text{…}."""
    text = without_markdown(text)
    if "\\\\begin" in text:
        text = text.replace("\\\\", "\\")
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z({[|,;!%$])", r"\\", text)  # escaped twice, as in JSON
    text = without_unicode(text)
    text = text.replace("\\$", DOLLAR).replace("\\%", "%").replace("\\#", "#")
    text = _THOUSANDS.sub("", text).replace("\\!", "").replace("{,}", ",")
    text = _SIZES.sub("", text)
    text = _fonts(_outside_matrices(_DELIMITERS, "", text))
    text = _outside_matrices(_SPACES, " ", text)
    text = _degrees(one_spelling(text))
    text = _plain_words(text)
    text = _fractions(text)
    text = re.sub(r"\\frac\{ *(\\text\{[^{}]*\}) *\}\{ *(\\text\{[^{}]*\}) *\}", r"\1 / \2", text)
    text = _mixed(text)
    text = _LEAD.sub("", re.sub(r"\\text\{(-?\d[\d.,]*) +([^{}\d]+)\}", r"\1 \\text{\2}", text))
    text = re.sub(r" {2,}", " ", _APART.sub(APART, text)).strip()
    return re.sub(r"(?<![\\.])[.,;:]+$|\\$", "", text).strip()


def unwrapped(text: str) -> str:
    """Return the text without \\text{…} around its words."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def squeezed(text: str) -> str:
    """Return a canonical text without spaces, fonts, degrees and idle braces, to compare letter by letter."""
    text = unwrapped(text)
    text = re.sub(r"\^\\circ(?![A-Za-z])|\s", "", re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", r"\1␠", text))
    text = re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)
    return text.rstrip(".,;")


def inside_braces(text: str, start: int) -> int:
    """Return the place after the bracket that closes the one at `start`, ( [ or {; -1 if nothing does."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place + 1
    return -1


def _outside_matrices(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """Replace a pattern, but keep \\\\, which ends a matrix's row and is no space."""
    return r"\\".join(pattern.sub(replacement, piece) for piece in text.split(r"\\"))


def _fonts(text: str) -> str:
    for _ in range(4):  # \text{\textbf{…}}
        shorter = _OTHER_FONT.sub(lambda one: one[1] or one[2] or "", text)
        shorter = _UPRIGHT.sub(_upright, shorter)
        if shorter == text:
            break
        text = shorter
    return text.replace("\x01", "{").replace("\x02", "}")


def _upright(one: re.Match[str]) -> str:
    inside = one[1].replace("~", " ").strip()
    if not re.search(r"[A-Za-z]", inside) or re.fullmatch(r"[eid]", inside):
        return f" {inside} " if inside else " "
    return f" \\text\x01{inside}\x02 "


def _degrees(text: str) -> str:
    text = re.sub(r"\^ *\{? *\\circ *\}?|\\degrees?(?![A-Za-z])|°|\\textdegree", r"^\\circ ", text)
    return re.sub(r"\{ *\} *(?=\^)", "", text)


def _plain_words(text: str) -> str:
    """Write function names, roots, powers and products as LaTeX has them."""
    words = re.compile(r"\\(?:text|begin|end|mathbb)\{[^{}]*\}")
    kept = words.findall(text)
    pieces = words.split(text)
    for place, piece in enumerate(pieces):
        piece = _BARE_WORD.sub(lambda one: rf"\{one[1] or one[2]} ", piece)
        piece = _BARE_INFINITY.sub(r"\\infty ", piece)
        piece = piece.replace("**", "^").replace("*", r" \cdot ")
        pieces[place] = re.sub(r"\^(-?\d{2,}|-\d|-?[A-Za-z](?=\b))", r"^{\1}", piece)
    text = pieces[0] + "".join(one + piece for one, piece in zip(kept, pieces[1:], strict=True))
    text = re.sub(r"(?<=\d) *[xX] *(?=10\^)", r"\\times ", text)
    text = _bracketed(text, re.compile(r"(?<![\\A-Za-z])abs *(?=\()"), lambda _, inside: f"|{inside}|")
    text = _bracketed(text, _ROOT_WORD, _root)
    text = _bracketed(text, re.compile(r"\\exp *(?=[({])"), lambda _, inside: f"e^{{{inside}}}")
    return _bracketed(text, re.compile(r"\^ *(?=\()"), lambda _, inside: f"^{{{inside}}}")


def _root(word: re.Match[str], inside: str) -> str:
    return rf"\sqrt[3]{{{inside}}}" if word[0] == "∛" or word[1] == "cbrt" else rf"\sqrt{{{inside}}}"


def _bracketed(text: str, opening: re.Pattern[str], form) -> str:
    """Rewrite what follows `opening`, a bracket's inside or else one number or letter, with `form`."""
    done, rest = "", text
    while found := opening.search(rest):
        start = found.end() + len(rest[found.end() :]) - len(rest[found.end() :].lstrip())
        head, sign = rest[: found.start()], rest[start : start + 1]
        end = inside_braces(rest, start) if sign in ("(", "{") and sign else -1
        if end > 0:
            done, rest = done + head, form(found, rest[start + 1 : end - 1]) + rest[end:]
        elif sign not in ("(", "{", "[") and (atom := _ATOM.match(rest, start)):
            done, rest = done + head, form(found, atom[0]) + rest[atom.end() :]
        else:
            done, rest = done + rest[: found.end()], rest[found.end() :]
            continue
        step = opening.match(rest)  # the new form may begin as the old one did
        if step:
            done, rest = done + rest[: step.end()], rest[step.end() :]
    return done + rest


def _fractions(text: str) -> str:
    """Write \\frac with both parts in braces, also for \\dfrac12, \\frac1{72} and \\frac ab."""
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    if "\\frac" not in text:
        return text
    pieces = text.split("\\frac")
    done = pieces[0]
    for piece in pieces[1:]:
        parts, rest = [], piece
        for _ in range(2):
            rest = rest.lstrip()
            if rest.startswith("{"):
                break
            one = re.match(r"\\[A-Za-z]+(?:\{[^{}]*\})?|[\dA-Za-z]", rest)
            if not one:
                break
            parts.append(f"{{{one[0]}}}")
            rest = rest[one.end() :]
        if len(parts) == 1 and not rest.lstrip().startswith("{"):
            parts, rest = [], piece
        done += "\\frac" + "".join(parts) + rest
    # \frac{1}2: the second part follows the first one's brace
    return re.sub(
        r"(\\frac *\{[^{}]*\}) *(\d|[A-Za-z])(?!\w)", r"\1{\2}", re.sub(r"\\frac +\{", r"\\frac{", done)
    )


def _mixed(text: str) -> str:
    """Join 3 1/2 and 3 \\frac{1}{2}, which are three and a half."""
    text = _MIXED.sub(
        lambda one: rf"{one[1]}\frac{{{one[2]}}}{{{one[3]}}}" if int(one[2]) < int(one[3]) else one[0], text
    )
    return re.sub(r"(?<=\d) +(?=\\frac\{\d+\}\{\d+\})", "", text)
