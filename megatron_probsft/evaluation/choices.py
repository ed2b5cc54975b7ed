"""Which option a generation chooses. In this order, each from the last such place of the text:

1. a \\boxed{…} that holds a letter, as B, (B), \\text{B} or B. aspirin, or an option's text
2. a statement: "answer is B", "Answer: (B)", "the correct option is **B**", or with the option's text
3. a line that begins with a letter and a bracket or full stop, "(B) aspirin", or holds the letter alone
4. the option whose text is found last; of options that contain each other the longest

Letters count in upper case, but in a box in either; "A" and "I" not where they may be words ("the answer is A
sign of" chooses nothing, "is A because" A). Nothing of these: no choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_probsft.data.boxed import boxed

_STATEMENT = (
    r"(?i:\b(?:answer|option|choice|diagnosis)\b(?:\s+(?:option|choice|letter))?"
    r"(?:\s+(?:is|would be|should be)"
    r"(?:\s+(?:the|option|choice|letter|therefore|thus))*|\s*[:=])\s*:?\s*)[\s*_\"'(\[$]*"
)
_ENDS = r"(?=[\s)\].,:;*_\"'$}]|$)"
_ENDS_A_WORD = r"(?=[)\].,:;*_\"'$}]|\s*$|\s*\n|\s+(?:because|since|as|and|which|for)\b)"


def chosen(generation: str, options: Mapping[str, str]) -> str | None:
    """The letter of the chosen option, a key of `options` (letter: text); None if no choice is found."""
    inside = boxed(generation)
    if inside and (letter := _in_box(inside, options)):
        return letter
    letters = "".join(re.escape(letter) for letter in options)
    careful = "".join(letter for letter in "AI" if letter in options)
    plain = letters.translate(str.maketrans("", "", careful)) or letters
    letter_re = rf"(?:([{plain}]){_ENDS}" + (rf"|([{careful}]){_ENDS_A_WORD})" if careful else ")")
    if found := _last(_STATEMENT + letter_re, generation):
        return found
    for statement in reversed([*re.finditer(_STATEMENT, generation)]):
        if letter := _starts_with_option(generation[statement.end() : statement.end() + 500], options):
            return letter
    if found := _last(rf"^[\s*_#>-]*(?:\(([{letters}])\)|([{letters}])[.):]|([{letters}])\W*$)", generation):
        return found
    return _by_text(generation, options)


def _in_box(inside: str, options: Mapping[str, str]) -> str | None:
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", inside).strip(" $.*")
    text = re.sub(r"^(?i:option|choice|answer)[\s:]+", "", text)
    if match := re.match(r"\(?(\w)\)?(?:[.):,\s]|$)", text):
        letter = match[1].upper()
        rest = text[match.end() :].strip()
        if letter in options and (not rest or match[0][-1] in ".):," or match[1].isupper()):
            return letter
    return _by_text(text, options)


def _last(pattern: str, text: str) -> str | None:
    found = [*re.finditer(pattern, text, re.MULTILINE)]
    return next((group for group in found[-1].groups() if group), None) if found else None


def _starts_with_option(text: str, options: Mapping[str, str]) -> str | None:
    text = _folded(text)
    hits = [
        (len(folded), key)
        for key, one in options.items()
        if (folded := _folded(one)) and _starts(text, folded)
    ]
    return max(hits)[1] if hits else None


def _starts(text: str, start: str) -> bool:
    return text.startswith(start) and not text[len(start) : len(start) + 1].isalnum()


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """The option whose text ends last as whole words; of two that end there, the longer."""
    text = _folded(text)
    hits = []
    for letter, option in options.items():
        if folded := _folded(option):
            ends = [one.end() for one in re.finditer(rf"(?<!\w){re.escape(folded)}(?!\w)", text)]
            if ends:
                hits.append((ends[-1], len(folded), letter))
    return max(hits)[2] if hits else None


def _folded(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")
