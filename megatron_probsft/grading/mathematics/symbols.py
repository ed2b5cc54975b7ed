"""One LaTeX spelling for each symbol: Unicode signs and the many commands that mean one thing."""

from __future__ import annotations

import re

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
_SPELLINGS = (
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


def without_unicode(text: str) -> str:
    """Write raised and lowered characters, fractions as ½, and other Unicode signs in LaTeX."""
    text = _RUN_RAISED.sub(lambda run: f"^{{{''.join(_RAISED[one] for one in run[0])}}}", text)
    text = _RUN_LOWERED.sub(lambda run: f"_{{{''.join(_LOWERED[one] for one in run[0])}}}", text)
    text = re.sub(rf"(?<=\d)\s*{_VULGAR.pattern}", lambda one: f" {_FRACTIONS[one[0].strip()]}", text)
    text = _VULGAR.sub(lambda one: rf"\frac{{{_FRACTIONS[one[0]].replace('/', '}{')}}}", text)
    return text.translate(_ONE_BY_ONE)


def one_spelling(text: str) -> str:
    """Write relations, brackets, sets and the like with one command each: \\leq and <= are \\le."""
    for pattern, plain_form in _SPELLINGS:
        text = pattern.sub(plain_form, text)
    return text
