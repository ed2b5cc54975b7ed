"""Tokenizing onto a full disk: one line, and nothing that a later run would take for whole."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives file systems of so many KiB."""
    mounted: list[Path] = []

    def mount_one(kib: int) -> Path:
        folder = tmp_path / f"{kib} KiB"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs here")
        mounted.append(folder)
        return folder

    yield mount_one
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_at_every_moment(mount: Callable[[int], Path], tmp_path: Path) -> None:
    """From a disk that does not even hold the rows to one that lacks a little, with 1 and 2 processes."""
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    rows = [
        {"prompt": f"sum {i}?" * 9, "response": f"it is {i}" * (1 + i % 9), "w": i % 3 + 1}
        for i in range(700)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(folder: Path, workers: int) -> TokenStore:
        settings: dict[str, Any] = {"seq_length": 900, "vocab_size": VOCAB_SIZE, "log": lambda _: None}
        return build_store(
            [str(file)], tokenizer, template="plain", weight_key="w", cache_dir=folder / "cache",
            num_workers=workers, **settings,
        )  # fmt: skip

    expected = build(tmp_path, 1)
    outcomes: list[str | None] = []
    for number, kib in enumerate([64, *range(100, 1000, 50), 8000]):
        disk = mount(kib)
        outcomes.append(_refusal(lambda folder=disk, workers=1 + number % 2: build(folder, workers)))
        if outcomes[-1] is None:
            assert os.listdir(disk / "cache") == [expected.digest]
            np.testing.assert_array_equal(build(disk, 1).tokens, expected.tokens)
            break
        assert os.listdir(disk / "cache") == []
        assert outcomes[-1] == (
            f"{disk / 'cache'}: no space left for the tokenized data: make room, or choose another folder "
            "with --data-cache-path"
        )
    assert len(outcomes) > 6
    assert outcomes[-1] is None, "a large enough disk is enough"


def _refusal(work: Callable[[], object]) -> str | None:
    try:
        work()
    except UserError as error:
        return str(error)
    return None
