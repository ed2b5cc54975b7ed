"""The answer in a box, as mathematics and multiple choice are trained to give it and judged by."""

from __future__ import annotations

import re

LONGEST = 2000  # characters of an answer: the longest of the paper's benchmarks has 223
_BOXES = 50  # as many are looked into, from the last: a runaway generation opens thousands
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")


def boxed(text: str) -> str | None:
    """What the last whole \\boxed{…} (or \\fbox, \\framebox) holds; None if there is none."""
    for opening in [*_BOX.finditer(text)][:-_BOXES:-1]:
        closing = _closing(text, opening.end(), min(len(text), opening.end() + LONGEST + 1))
        if closing is not None:
            return text[opening.end() : closing].strip()
    return None


def _closing(text: str, start: int, end: int) -> int | None:
    depth = 1
    for place in range(start, end):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None
