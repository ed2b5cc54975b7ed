"""The part of a generation that can hold its answer: after the thoughts, before the end of the turn."""

from __future__ import annotations

import re

_THOUGHT = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|<\|?/?channel\|?>final(?:<\|message\|>)?", re.IGNORECASE
)
_TURN_END = re.compile(
    r"(?<=\S)\s*(?:<\|(?:im_end|im_start|eot_id|end|endoftext|end_of_text)\|>|<end_of_turn>|</s>)"
)


def final_text(generation: str) -> str:
    """Return what follows marked thoughts, if anything does, up to the end of the turn."""
    if over := _TURN_END.search(generation):
        generation = generation[: over.start()]
    ends = [*_THOUGHT.finditer(generation)]
    if ends and (rest := generation[ends[-1].end() :]).strip():
        return rest
    return generation
