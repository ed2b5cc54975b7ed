"""The answer in a box, as mathematics and multiple choice are trained to give it and judged by."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 2000  # characters of an answer: the longest of the paper's benchmarks has 223
_BOXES = 50  # as many are looked into, from the last: a runaway generation opens thousands
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")


@dataclass(frozen=True)
class Box:
    """A box holds `inside` and stands in the text from `start` to `end`."""

    inside: str
    start: int
    end: int


def boxed(text: str) -> str | None:
    """Return the content of the last whole \\boxed{…} (or \\fbox, \\framebox); None if there is none."""
    found = boxes(text, most=1)
    return found[0].inside if found else None


def boxes(text: str, *, most: int = _BOXES) -> list[Box]:
    """Return the last whole boxes, at most `most`, in the text's order; where boxes nest, the innermost."""
    found: list[Box] = []
    for opening in [*_BOX.finditer(text)][:-_BOXES:-1]:
        closing = _closing(text, opening.end(), min(len(text), opening.end() + LONGEST + 1))
        if closing is None or (found and closing >= found[-1].start):
            continue
        found.append(Box(text[opening.end() : closing].strip(), opening.start(), closing + 1))
        if len(found) == most:
            break
    return found[::-1]


def _closing(text: str, start: int, end: int) -> int | None:
    depth = 1
    for place in range(start, end):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None
