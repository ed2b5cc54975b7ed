"""The option that a generation chooses, read in this order, each from the last such place of the text:

1. a \\boxed{…} that holds a letter, as B, (B), \\text{B} or B. aspirin, or an option's text
2. a statement: "answer is B", "Answer: (B)", "the correct option is **B**", "B is correct", "I choose B", or
   with the option's text
3. a line that begins with a letter and a bracket or full stop, "(B) aspirin", or holds the letter alone; but
   not where the text repeats the list of all options
4. the option whose text is found last; of options that contain each other the longest

Letters count in upper case; in a box, alone or before a full stop or bracket after "answer" in either. "A"
and "I" count not where they may be words ("the answer is A sign of" chooses nothing, "is A because" A).
Several letters, as in "A or B", are no choice. Thoughts up to </think> and Markdown's marks are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_probsft.grading.boxed import boxed
from megatron_probsft.grading.final_text import final_text
from megatron_probsft.grading.markdown import without_markdown

_TAIL = 20_000  # characters at the end of a generation that are read
_ADVERB = (
    r"(?:the|option|choice|letter|therefore|thus|clearly|definitely|certainly|indeed|simply|most|likely|probably|best"
    r"|given|by|following)"
)
_STATEMENT = (
    r"(?i:\b(?:answer|option|choice|diagnosis)\b(?:\s+(?:option|choice|letter))?"
    r"(?:(?:[^.\n:;]{0,60}?)\s+(?:is|would be|should be|must be)"
    rf"(?:\s+{_ADVERB})*|\s*[:=→-]+(?:\s*{_ADVERB}\b)*|\s*(?=\n))\s*:?\s*"
    r"|\b(?:I(?:'d| would| will|'ll)?|we)\s+(?:choose|select|pick|go with|answer)\s+"
    r"(?:(?:option|choice|letter)\s+)?)"
    r"[\s*_\"'(\[{$]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[\s*_\"'(\[$]*"
)
_ENDS = r"(?=[\s)\].,:;!*_\"'$}]|$)"
_ENDS_A_WORD = r"(?=[)\].,:;!*_\"'$}]|\s*$|\s*\n|\s+(?:because|since|as|and|or|which|for|is|not)\b)"
_RIGHT = (
    r"\)?\s+is\s+(?:therefore\s+|thus\s+|clearly\s+)?(?:the\s+)?(?:single\s+)?(?:only\s+)?(?:correct|right|best|true"
    r"|most (?:likely|appropriate|accurate|suitable))\b"
)


def chosen(generation: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the chosen option, a key of `options` (letter: text); None if there is none."""
    generation = final_text(generation)
    inside = boxed(generation)
    if inside and (letter := _in_box(without_markdown(inside), options)):
        return letter
    text = without_markdown(re.sub(r"</?answer>", "\n", generation[-_TAIL:]))
    letters = "".join(re.escape(letter) for letter in options)
    if alone := re.fullmatch(
        rf"(?:(?i:option|choice|answer)\W+)?([{letters}{letters.lower()}])", _bare(text)
    ):
        return alone[1].upper()
    if statement := _last_statement(text, options):
        return statement[0]
    line = rf"^[ \t*_#>-]*(?:\(([{letters}])\)|([{letters}])[.):]|([{letters}])\W*$)"
    lines = [*re.finditer(line, text, re.MULTILINE)]
    listed = [next(group for group in one.groups() if group) for one in lines]
    if len(options) > 1 and listed[-len(options) :] == [*options]:  # all options, as the question lists them
        rest = text[lines[-1].end() :].partition("\n")[2]
        return _by_text(rest, options)
    return listed[-1] if listed else _by_text(text, options)


def _bare(text: str) -> str:
    """Return a text without the signs at both ends that are no letters; nothing if the text is long."""
    text = text.strip()
    return re.sub(r"^\W+|\W+$", "", text) if len(text) < 50 else ""


def _last_statement(text: str, options: Mapping[str, str]) -> tuple[str | None] | None:
    """Return (choice,) of the last statement, by letter, or else by text; (None,) where it names several."""
    letters = "".join(re.escape(letter) for letter in options)
    careful = "".join(letter for letter in "AI" if letter in options)
    others = letters.translate(str.maketrans("", "", careful)) or letters
    letter = rf"(?:([{others}]){_ENDS}" + (rf"|([{careful}]){_ENDS_A_WORD}" if careful else "")
    letter += rf"|([{letters.lower()}])(?=\s*$|\)|[.,;:](?:\s|$)))"
    stated = [*re.finditer(_STATEMENT + letter, text, re.MULTILINE)]
    stated += re.finditer(rf"(?<![\w'-])(?:(?i:option|choice|answer)\s+)?\(?([{letters}]){_RIGHT}", text)
    if stated:
        last = max(stated, key=lambda one: one.end())
        also = r"[)\]*\s]*(?:,|/|&|\bor\b|\band\b)\s*(?:\bor\b|\band\b)?\s*"
        also += rf"\(?[{letters}]\)?(?=\s*(?:$|[.,;)\n]))"
        if re.compile(also, re.MULTILINE).match(text, last.end()):
            return (None,)
        return (next(group for group in last.groups() if group).upper(),)
    for statement in reversed([*re.finditer(_STATEMENT, text)]):
        if found := _starts_with_option(text[statement.end() : statement.end() + 500], options):
            return (found,)
    return None


def _in_box(inside: str, options: Mapping[str, str]) -> str | None:
    text = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|bf)\s*\{([^{}]*)\}", r"\1", inside)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip(" $.*")
    text = re.sub(r"^(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer))(?:\s+is)?[\s:]+", "", text)
    several = re.fullmatch(r"\(?(\w)\)?(?:\s*(?:,|/|;|and|or|\\text\{ *(?:and|or) *\})+\s*\(?(\w)\)?)+", text)
    if several and several[1].upper() in options and several[2].upper() in options:
        return None
    if match := re.match(r"\(?(\w)\)?(?:[.):,\s]|$)", text):
        letter = match[1].upper()
        rest = text[match.end() :].strip()
        if letter in options and (not rest or match[0][-1] in ".):," or match[1].isupper()):
            return letter
    return _by_text(text, options)


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
    """Return the option whose text, as whole words, ends last; of two that end there, the longer."""
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
