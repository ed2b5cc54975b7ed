"""The mathematical answer that a generation states, found in its text."""

from __future__ import annotations

import re

from megatron_probsft.grading.boxed import Box, boxes
from megatron_probsft.grading.final_text import final_text
from megatron_probsft.grading.markdown import without_markdown
from megatron_probsft.grading.mathematics.notation import canonical, squeezed
from megatron_probsft.grading.mathematics.shapes import items
from megatron_probsft.grading.quantities.bases import based
from megatron_probsft.grading.quantities.numbers import exact_value
from megatron_probsft.grading.quantities.units import quantity

_TAIL = 4000  # characters at the end of a generation in which an answer without a box is looked for

_TAGGED = re.compile(r"<answer>(.{1,2000}?)</answer>", re.DOTALL | re.IGNORECASE)
_NEXT_TO = re.compile(
    r"(?:[\s$,;.&]|\\\\|\\[,;:!() \[\]]|\\q?quad|\*\*|\band\b|\bor\b"
    r"|\\(?:text|textrm|mathrm|mbox)\{[\s,]*(?:and|or)[\s,]*\}|\\(?:lor|vee|cup)(?![A-Za-z])|(?P<name>\\?[A-Za-z](?:_\{?\w+\}?)?)\s*=)*"
)
_BEHIND = re.compile(
    r"\}*(?:\$|\\\)|\s|~|\\[,;: ]|\\q?quad|\{\s*\}|(?<=\})\s*)*"
    r"(_\{?\d{1,2}\}?|_\{?\\text\{[^{}]*\}\}?|\^\{?\\circ\}?(?:\s*\\?(?:text|mathrm)?\{?[CF]\}?)?|\\?%"
    r"|(?:\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\n]{1,40}\}(?:\^\{?-?\d\}?)?[\s/]*)+|(?:°\s?[CF]?)|[A-Za-z²³/]{2,15}(?=[\s.,;)$]|$))"
)
_STATED = re.compile(
    r"(?:\banswer\b(?:[^.\n:=]{0,80}?)(?:\bis\b|\bare\b|\bequals\b|\bwould be\b|\bmust be\b|:|=)"
    r"|\b(?:final answer|answer)[ \t]*(?=\n|$|\$|\\[(\[])|^####)[ \t]*:?"
    r"(?:\s*(?:therefore|thus|simply|then|equal to)\b)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_MATHEMATICS = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\$(.{1,500}?)(?<!\\)\$|\\\((.{1,500}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!and\b|or\b)[A-Za-z]{2,}")
_CLOSING = re.compile(r"\bfinal answer\b[^.\n]{0,40}?(?:\bis\b|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"[.!?](?=\s+[A-Z(*]|\s*$)|\n|;(?=\s+[a-z])|\s\((?=[\w ,]*[a-z]{2})"
    r"|,? (?:because|not|rather than|instead of|since|as|so|which|where|for|when)\b"
)


def tail(generation: str) -> str:
    """Return the end of a generation, where an answer that nothing marks is looked for."""
    return without_markdown(final_text(generation)[-_TAIL:])


def stated(generation: str, *, several: bool, words: bool = False) -> str | None:
    """Return the answer that a generation states, in a box or after "answer"; None if it states none.

    Boxes with nothing but commas, "and" or "or" between them are one list. Where the reference has `several`
    answers and the last box holds one, all boxes together are the answer. `words` says that the reference is
    in words, so that a whole sentence may be the answer. A "final answer" after the last box is preferred.
    """
    text = final_text(generation)
    if found := boxes(text):
        behind = without_markdown(text[found[-1].end :][-_TAIL:])
        closing = _statement(behind, words) if _CLOSING.search(behind) else None
        return closing or _boxed(text, found, several)
    if tagged := _TAGGED.findall(text[-_TAIL:]):
        return tagged[-1].strip() or None
    return _statement(without_markdown(text[-_TAIL:]), words)


def _boxed(text: str, found: list[Box], several: bool) -> str:
    group = [found[-1].inside]
    names: list[str | None] = [None]
    for one, two in zip(found[-2::-1], found[:0:-1], strict=True):
        between = _NEXT_TO.fullmatch(text, one.end, two.start)
        if not between:
            break
        names[0] = between["name"]
        names.insert(0, None)
        group.insert(0, one.inside)
    if before := re.search(r"(\\?[A-Za-z](?:_\{?\w+\}?)?)\s*=\s*$", text[: found[-len(group)].start][-30:]):
        names[0] = before[1]
    distinct = _distinct(group)
    if len(distinct) == 1:
        if several and len(items(canonical(distinct[0]), every_comma=True)) < 2:
            everything = _distinct([box.inside for box in found if box.inside])
            if len(everything) > 1:
                return ", ".join(everything)
        return _with_unit(text, found[-1])
    if all(names) and len(set(names)) == len(names):
        return ", ".join(f"{name} = {one}" for name, one in zip(names, group, strict=True))
    return ", ".join(distinct)


def _distinct(texts: list[str]) -> list[str]:
    plain_texts = {text: squeezed(canonical(text)) for text in texts}
    values = {text: exact_value(one) for text, one in plain_texts.items()}
    return list(
        {plain_texts[text] if values[text] is None else values[text]: text for text in texts}.values()
    )


def _with_unit(text: str, box: Box) -> str:
    """Return a box's number together with the unit or base right behind the box."""
    behind = _BEHIND.match(text, box.end, box.end + 80)
    inside = canonical(box.inside)
    if not behind or exact_value(squeezed(inside)) is None:
        return box.inside
    together = canonical(
        f"{box.inside} {behind[1]}" if not behind[1].startswith("_") else f"{box.inside}{behind[1]}"
    )
    unit = quantity(together)[1]
    known = based(together) or (unit and unit.powers and unit.certain)
    return f"{box.inside} {behind[1]}".replace(" _", "_").strip() if known else box.inside


def _statement(text: str, words: bool) -> str | None:
    for match in reversed([*_STATED.finditer(text)][-20:]):
        rest = text[match.end() :]
        rest = rest.lstrip() if not rest.split("\n", 1)[0].strip(" :*") else rest
        rest = re.sub(r"^[\s:*>-]*(?=\S)", lambda lead: lead[0][-1:] if lead[0].endswith("-") else "", rest)
        if (found := _first_answer(rest, words)) is not None:
            return found
    return None


def _first_answer(rest: str, words: bool) -> str | None:
    """Return the formulas that a statement begins with, or its sentence."""
    end = _SENTENCE_END.search(_hidden(rest[:2000]))
    sentence = rest[: end.start() if end else len(rest)]
    mathematics = [*_MATHEMATICS.finditer(rest[:2000])]
    first = mathematics[0].start() if mathematics else len(rest)
    outside = _MATHEMATICS.sub(" ", sentence)
    begins = re.match(r"[-−$\\(\[{√π\d½¼¾|]", sentence)
    if not words and not begins and len(_PROSE.findall(outside)) > 2 and re.search(r"\d|\\|\$", sentence):
        verbs = [*re.finditer(r"\b(?:is|are|equals|=)\s+(?=\S)", _hidden(sentence))]
        if not verbs or not re.match(r"[-−$\\(\[{√π\d½¼¾|]|[a-z]\b", sentence[verbs[-1].end() :]):
            return None
        return _first_answer(rest[verbs[-1].end() :], True)
    if (
        mathematics
        and first <= len(sentence)
        and not re.search(r"\d", rest[:first])
        and len(rest[:first].split()) < 8
    ):
        return _joined(rest, mathematics)
    line = sentence.strip().rstrip(".")
    return line if line and len(line) <= 300 and re.search(r"[\w∞∅]", line) else None


def _hidden(text: str) -> str:
    """Return the text with its formulas blotted out, so that no sentence ends in one."""
    return _MATHEMATICS.sub(lambda one: "#" * len(one[0]), text)


def _joined(rest: str, mathematics: list[re.Match[str]]) -> str:
    """Return the first formula and those that only commas, "and" or "or" part from it."""
    last = mathematics[0]
    for one in mathematics[1:]:
        if not re.fullmatch(r"[\s,;]*(?:and|or)?\s*", rest[last.end() : one.start()]):
            break
        last = one
    behind = re.match(r"\s*(?:%|percent\b)", rest[last.end() :])
    return re.sub(r"\$+|\\[()\[\]]", "", rest[mathematics[0].start() : last.end()]).strip() + (
        " %" if behind else ""
    )
