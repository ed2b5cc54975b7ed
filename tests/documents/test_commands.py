"""What the documents tell a reader to type works: each page's blocks run in order in a folder of its own.

The folder holds what the pages speak of (`tests.documents.place`). Blocks that cannot run here are marked by
their title (`tests.support.documents`); of those the programs and flags are checked.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from tests.documents.place import run_in
from tests.support.documents import (
    NOT_RUN,
    PAGES,
    ROOT,
    RUN_ELSEWHERE,
    Block,
    blocks_of,
    commands_of,
    verb_of,
)
from tests.support.sizes import rows

RUN_PAGES = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.mark.parametrize(
    "page",
    rows(RUN_PAGES, fast=[], rare=[ROOT / "docs" / f"{name}.md" for name in ("checkpoints", "conversion")]),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_page_from_top_to_bottom(page: Path, place: Path) -> None:
    for block in blocks_of(page):
        if block.is_file:
            (place / block.title).write_text(block.text)
        elif block.is_run and block.language == "bash":
            run_in(place, ["bash", "-euo", "pipefail", "-c", block.text], block.place)
        elif block.is_run:
            run_in(place, [sys.executable, "-c", block.text], block.place)


def test_every_shell_block_is_run_or_says_why_not() -> None:
    for block in _shell_blocks():
        known = not block.title or block.title in (*NOT_RUN, *RUN_ELSEWHERE)
        assert known, f"{block.place}: the title {block.title!r} is none of those in tests.support.documents"
        if block.title in RUN_ELSEWHERE:
            assert (ROOT / RUN_ELSEWHERE[block.title]).is_file()


def test_programs_and_flags_of_what_is_not_run_exist() -> None:
    for block in _shell_blocks():
        for words in commands_of(block.text) if block.title else ():
            if (found := verb_of(words)) is None:
                continue
            program, flags = found
            known = help_words(tuple(program))
            for flag in flags:
                assert flag.replace("_", "-") in known, f"{block.place}: {' '.join(program)} has no {flag}"


def test_no_command_is_hidden_from_these_tests() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in ("bash", "python", "text", "yaml", "json"), block.place
            if block.language == "text":
                assert not block.text.startswith(("probsft ", "torchrun ", "make ", "$ ")), block.place


def _shell_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == "bash"]


@cache
def help_words(program: tuple[str, ...]) -> frozenset[str]:
    """The words of a program's --help."""
    words = [sys.executable, *program[1:]] if program[0] == "python" else [*program]
    text = run_in(ROOT, [*words, "--help"], " ".join(program))
    return frozenset(text.translate(str.maketrans(",[]=|", "     ")).split())
