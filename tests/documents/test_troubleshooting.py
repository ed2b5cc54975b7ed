"""The error messages in the documents are those of the code: a reader finds them by searching."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
HOLE = "…"
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(), re.M)
_SHORT = 6  # characters of a part of a message that are too few to look for


def _texts() -> str:
    """All texts of the package; names and numbers put into them are …"""
    found: list[str] = []
    for file in sorted((ROOT / "megatron_probsft").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else HOLE
                    for part in node.values
                )  # fmt: skip
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


TEXTS = _texts()


def test_there_are_enough() -> None:
    assert len(MESSAGES) >= 40
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_code(message: str) -> None:
    for part in message.split(HOLE):
        if len(part.strip()) >= _SHORT:
            assert part.strip() in TEXTS, f"{part!r} of {message!r}"
