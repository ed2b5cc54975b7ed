"""One notation for mathematical answers: what people and models write, as plain LaTeX.

Unicode, plain text ("sqrt(2)", "3 1/2", "x**2"), spaces, sizes and fonts are brought to one form; nothing
that has a meaning is lost. Everything here takes time about linear in the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from megatron_probsft.grading.markdown import plain

DOLLAR = "＄"  # \$, the currency, once dollar signs around mathematics are dropped
APART = "␣"  # between digits that are no one number

_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
              "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
              "⅑": "1/9", "⅒": "1/10"}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖᵢ", "0123456789+-()nki", strict=True))
_SIGNS = {
    "−": "-", "–": "-", "‒": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "÷": "/", "⁄": "/", "∕": "/", "≤": r"\le ",
    "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "≃": r"\approx ", "≅": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ",
    "∅": r"\emptyset ", "⌀": r"\emptyset ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "∠": r"\angle ",
    "∨": r"\lor ", "∧": r"\land ", "∣": "|", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "λ": r"\lambda ", "φ": r"\phi ",
    "ω": r"\omega ", "σ": r"\sigma ", "τ": r"\tau ", "ρ": r"\rho ", "Δ": r"\Delta ", "Σ": r"\Sigma ",
    "Ω": r"\Omega ", "∑": r"\sum ", "∫": r"\int ", "º": "°", "′": "'", "″": "''", "’": "'", "`": "",
    "\u200b": "", "\u2061": "", "\u2062": "", "\u2060": "", "\ufeff": "",
}  # fmt: skip
_ONE_BY_ONE = str.maketrans(
    _SIGNS | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF04}
    | dict.fromkeys([*map(chr, range(0x2000, 0x200B)), *"\xa0\u1680\u202f\u205f\u3000"], " ")
)  # fmt: skip
_RUN_RAISED = re.compile(f"[{''.join(_RAISED)}]+")
_RUN_LOWERED = re.compile(f"[{''.join(_LOWERED)}]+")
_VULGAR = re.compile(f"[{''.join(_FRACTIONS)}]")

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
_TEXTUAL = [
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "sin",
    "cos",
    "tan",
    "sec",
    "csc",
    "cot",
    "ln",
    "log",
    "exp",
    "gcd",
    "lcm",
    "pi",
    "theta",
    "alpha",
    "beta",
    "gamma",
    "lambda",
    "infty",
]
_BARE_WORD = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_TEXTUAL)})(?![A-Za-z])|(?<=[\d)])(pi|sqrt)(?![A-Za-z])")
_BARE_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])", re.IGNORECASE)
_ROOT_WORD = re.compile(r"\\?(?<![A-Za-z])(sqrt|cbrt)\s*(?=[(\d\w{\[])|√|∛")
_ATOM = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z]")
_LEAD = re.compile(  # what leads to an answer and is none
    r"^ *(?:\\text\{[^{}]*(?:\bis|\bare|\bequals|:|=)\}"
    r"|(?:\\text\{ *)?(?:about|approximately|roughly|nearly)\b *\}?) *(?=\S)"
)
_RELATIONS = (
    (re.compile(r"<=|=<|\\(?:leq?slant|leqq|leq|le)(?![A-Za-z])|&le;"), r"\\le "),
    (re.compile(r">=|=>|\\(?:geq?slant|geqq|geq|ge)(?![A-Za-z])|&ge;"), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])|&lt;"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])|&gt;"), ">"),
    (re.compile(r"!=|\\neq?(?![A-Za-z])|\\not\s*=|<>"), r"\\ne "),
    (re.compile(r"~=|\\(?:approx|simeq|approxeq|cong|doteq)(?![A-Za-z])"), r"\\approx "),
    (re.compile(r"\\(?:colon|mathbin\{:\}|ratio)(?![A-Za-z])"), ":"),
    (re.compile(r"\\(?:vee|lor)(?![A-Za-z])"), r"\\text{or}"),
    (re.compile(r"\\(?:wedge|land)(?![A-Za-z])"), r"\\text{and}"),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\rbrace"), r"\\}"),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\(?:varnothing|empty)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:mathbb\s*([RZNQC])|R(?![A-Za-z]))"), lambda one: rf"\mathbb{{{one[1] or 'R'}}}"),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![A-Za-z])"), r"\\setminus "),
    (re.compile(r"\\(?:div|slash)(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:lvert|rvert|mid|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:imath)(?![A-Za-z])"), "i"),
)  # fmt: skip


@lru_cache(maxsize=16384)
def canonical(text: str) -> str:
    """The answer in one notation, with single spaces, words and units in \\text{…}."""
    text = plain(text)
    if "\\\\begin" in text:
        text = text.replace("\\\\", "\\")
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z({[|,;!%$])", r"\\", text)  # escaped twice, as in JSON
    text = _RUN_RAISED.sub(lambda run: f"^{{{''.join(_RAISED[one] for one in run[0])}}}", text)
    text = _RUN_LOWERED.sub(lambda run: f"_{{{''.join(_LOWERED[one] for one in run[0])}}}", text)
    text = re.sub(rf"(?<=\d)\s*{_VULGAR.pattern}", lambda one: f" {_FRACTIONS[one[0].strip()]}", text)
    text = _VULGAR.sub(lambda one: rf"\frac{{{_FRACTIONS[one[0]].replace('/', '}{')}}}", text)
    text = text.translate(_ONE_BY_ONE)
    text = text.replace("\\$", DOLLAR).replace("\\%", "%").replace("\\#", "#")
    text = _THOUSANDS.sub("", text).replace("\\!", "").replace("{,}", ",")
    text = _SIZES.sub("", text)
    text = _fonts(_outside_matrices(_DELIMITERS, "", text))
    text = _outside_matrices(_SPACES, " ", text)
    for pattern, plain_form in _RELATIONS:
        text = pattern.sub(plain_form, text)
    text = _degrees(text)
    text = _plain_words(text)
    text = _fractions(text)
    text = re.sub(r"\\frac\{ *(\\text\{[^{}]*\}) *\}\{ *(\\text\{[^{}]*\}) *\}", r"\1 / \2", text)
    text = _mixed(text)
    text = _LEAD.sub("", re.sub(r"\\text\{(-?\d[\d.,]*) +([^{}\d]+)\}", r"\1 \\text{\2}", text))
    text = re.sub(r" {2,}", " ", _APART.sub(APART, text)).strip()
    return re.sub(r"(?<![\\.])[.,;:]+$|\\$", "", text).strip()


def unwrapped(text: str) -> str:
    """Without \\text{…} around words."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def squeezed(text: str) -> str:
    """A canonical text for comparing letter by letter: without spaces, fonts, degrees and idle braces."""
    text = unwrapped(text)
    text = re.sub(r"\^\\circ(?![A-Za-z])|\s", "", re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", r"\1␠", text))
    text = re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)
    return text.rstrip(".,;")


def inside_braces(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`, ( [ or {; -1 if nothing does."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place + 1
    return -1


def _outside_matrices(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """\\\\ and what follows it are rows' ends, not spaces: they are kept."""
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
    """Function names, roots, powers and products as LaTeX has them."""
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
    """What `opening` stands before, a bracket's inside or else one number or letter, in another form."""
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
    """\\frac with both parts in braces: \\dfrac12, \\frac1{72}, \\frac ab."""
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
    """3 1/2 and 3 \\frac{1}{2} are three and a half."""
    text = _MIXED.sub(
        lambda one: rf"{one[1]}\frac{{{one[2]}}}{{{one[3]}}}" if int(one[2]) < int(one[3]) else one[0], text
    )
    return re.sub(r"(?<=\d) +(?=\\frac\{\d+\}\{\d+\})", "", text)
