"""The documents' code: fenced blocks, what stands in a fence's title, and the commands of a shell block."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "recipes" / "README.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "flags.md"),  # that is generated
)
NOT_RUN = (
    "needs GPUs",
    "needs the hub",
    "needs a network",
    "needs a cluster",
    "needs Docker",
)
"""Titles of shell blocks that no machine like the tests' can run; the flags in them are checked."""
RUN_ELSEWHERE = {
    "ten minutes": "tests/end_to_end/test_quickstart.py",
    "starts vLLM": "tests/end_to_end/test_evaluate_vllm.py",
    "minutes": "tests/end_to_end/test_one_click.py",
    "the tests themselves": ".ci/run",
    "unpacks a model": "tests/unit/experiments/test_smollm2.py",
    "builds this site": "tests/documents/test_site.py",
}
"""Titles of shell blocks that take long, and the file that runs the same command, small."""

_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>[\w+-]*)(?P<rest>.*)\n(?P<text>(?:.*\n)*?)(?P=fence)[ ]*$", re.M
)
_TITLE = re.compile(r'^ title="([^"]+)"$')


@dataclass(frozen=True)
class Block:
    """A fenced block. Its title says what it needs, or the name of the file that it shows."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_file(self) -> bool:
        """Its text is to be in a file of the title's name."""
        return "." in self.title and " " not in self.title

    @property
    def is_run(self) -> bool:
        """It is run by the test of its page."""
        return self.language in ("bash", "python") and not self.title


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises ValueError: a fence whose info string is not a language with or without title="…".
    """
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        title = _TITLE.match(match["rest"])
        if (match["rest"] and not title) or not match["language"]:
            raise ValueError(f'{page}:{line}: a fence is ```language or ```language title="…"')
        found.append(Block(page, line, match["language"], title[1] if title else "", match["text"]))
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without its comments and the variables set before it."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words for words in map(_without_variables, commands) if words]


def verb_of(words: list[str]) -> tuple[list[str], list[str]] | None:
    """(the words that start one of our programs, the flags given to it); None for other programs."""
    if words[0] == "probsft":
        count = 3 if words[1:2] == ["convert"] else 2
        return words[:count], _flags(words[count:])
    for module in (word for word in words if word.startswith("megatron_probsft.")):
        start = words.index(module)
        if words[start - 1] == "-m":
            return ["python", "-m", module], _flags(words[start + 1 :])
    return None


def _flags(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words
