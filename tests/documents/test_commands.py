"""What the documents tell a reader to type works: each page's blocks are run in order in a folder of its own.

The folder holds what the pages speak of: a model at runs/models/SmolLM2-135M-Instruct (a tiny one here),
train.jsonl, valid.jsonl and chat.jsonl, and a run in runs/first with its Hugging Face folder runs/first-hf.
Blocks that this cannot do are marked by their title (`tests.support.documents`); of those the flags are
checked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

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
from tests.support.tiny_models import save_tiny_model

MODEL = "runs/models/SmolLM2-135M-Instruct"
FIRST = (
    f"probsft train --hf-model {MODEL} --data train.jsonl --valid-data valid.jsonl --objective p "
    "--train-iters 2 --global-batch-size 8 --seq-length 512 --save runs/first --save-hf runs/first-hf"
)
LONGEST = 120  # seconds for a block


@pytest.fixture(scope="session")
def whole_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("documents")
    model = save_tiny_model(place / MODEL, heads=4, groups=2, head_dim=32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    pairs = [
        {"prompt": f"what is the sum of {i} and two?", "response": f"it is {i + 2}."} for i in range(64)
    ]
    chats = [
        {"messages": [{"role": "user", "content": one["prompt"]},
                      {"role": "assistant", "content": one["response"]}]}
        for one in pairs
    ]  # fmt: skip
    for name, rows in {"train": pairs, "valid": pairs[:8], "chat": chats}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _run(["bash", "-c", FIRST], place, "the pages' own run")
    return place


@pytest.fixture
def place(whole_place: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    shutil.copytree(whole_place, folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_from_top_to_bottom(page: Path, place: Path) -> None:
    for block in blocks_of(page):
        if block.is_file:
            (place / block.title).write_text(block.text)
        elif block.is_run and block.language == "bash":
            _run(["bash", "-euo", "pipefail", "-c", block.text], place, block.place)
        elif block.is_run:
            _run([sys.executable, "-c", block.text], place, block.place)


def test_every_shell_block_is_run_or_says_why_not() -> None:
    for block in _shell_blocks():
        known = not block.title or block.title in (*NOT_RUN, *RUN_ELSEWHERE) or block.is_file
        assert known, f"{block.place}: the title {block.title!r} is none of those in tests.support.documents"
        if block.title in RUN_ELSEWHERE:
            assert (ROOT / RUN_ELSEWHERE[block.title]).is_file()


def test_programs_and_flags_of_what_is_not_run_exist() -> None:
    for block in _shell_blocks():
        if not block.title:
            continue
        for words in commands_of(block.text):
            found = verb_of(words)
            if found is None:
                continue
            program, flags = found
            known = _help(tuple(program))
            for flag in flags:
                assert flag.replace("_", "-") in known, f"{block.place}: {' '.join(program)} has no {flag}"


def test_no_block_is_hidden_from_these_tests() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in ("bash", "python", "text", "yaml", "json", "bibtex"), block.place
            if block.language == "text":
                assert not block.text.startswith(("probsft ", "torchrun ", "make ", "$ ")), block.place


def _shell_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == "bash"]


@cache
def _help(program: tuple[str, ...]) -> frozenset[str]:
    """The words of a program's --help."""
    words = [sys.executable, *program[1:]] if program[0] == "python" else [*program]
    text = _run([*words, "--help"], ROOT, " ".join(program))
    return frozenset(text.replace(",", " ").replace("[", " ").replace("]", " ").replace("=", " ").split())


def _run(words: list[str], folder: Path, place: str) -> str:
    bin_folder = Path(sys.executable).parent  # of this environment: python, probsft and torchrun are in it
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST
    )
    assert done.returncode == 0, f"{place}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout
