"""The token cache under processes that race, and under processes that are killed at any moment."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_probsft.data.store import encoding, store_files, token_store
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.runtime import build_folder
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store

FORK = get_context("fork")
ROWS = 1200


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    rows = [{"prompt": "one " * (i % 5) + "?", "response": f"two  {i}\n"} for i in range(ROWS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return save_tiny_tokenizer(tmp_path / "tokenizer")


def build(folder: Path, tokenizer: Any, cache: str = "cache", num_workers: int = 1) -> TokenStore:
    return build_store(
        [str(folder / "a.jsonl")], tokenizer, template="chat", seq_length=64, vocab_size=VOCAB_SIZE,
        cache_dir=folder / cache, num_workers=num_workers, log=lambda _: None,
    )  # fmt: skip


def in_process(function: Callable[[], Any]) -> Any:
    """A started process, the leader of its own group so that all of it can be killed."""

    def run() -> None:
        os.setpgrp()
        function()

    process = FORK.Process(target=run)
    process.start()
    return process


def assert_same(store: TokenStore, expected: TokenStore) -> None:
    assert store.digest == expected.digest
    for name in ("tokens", "trained", "offsets", "supervised", "source"):
        assert np.array_equal(getattr(store, name), getattr(expected, name)), name
    assert len(store) == ROWS


@pytest.mark.size("test")
def test_four_processes_build_the_same_store_at_once(tmp_path: Path, tokenizer: Any) -> None:
    expected = build(tmp_path, tokenizer, "elsewhere")
    for attempt in range(3):
        cache = f"cache{attempt}"
        barrier, results = FORK.Barrier(4), FORK.SimpleQueue()

        def rank(cache: str = cache, barrier: Any = barrier, results: Any = results) -> None:
            barrier.wait()
            store = build(tmp_path, tokenizer, cache)
            results.put((store.digest, store.tokens.tobytes(), store.offsets.tobytes()))

        processes = [in_process(rank) for _ in range(4)]
        found = {results.get() for _ in processes}
        for process in processes:
            process.join()
        assert found == {(expected.digest, expected.tokens.tobytes(), expected.offsets.tobytes())}
        assert os.listdir(tmp_path / cache) == [expected.digest]


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool) -> None:
    """SIGKILL the process when it makes this call of the function, or when that call is done."""
    original, calls = getattr(owner, name), []

    def killing(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(owner, name, killing)


MOMENTS = {
    "an empty folder": (build_folder.fcntl, "lockf", 1, False),
    "before the rows": (token_store, "read_rows", 1, False),
    "within the tokens": (encoding.Encoder, "__call__", 2, True),
    "before the files": (token_store, "write_store", 1, False),
    "within the files": (store_files.io, "BytesIO", 2, False),
    "before the rename": (token_store, "write_store", 1, True),
    "after the rename": (Path, "rename", 1, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_builder_leaves_nothing_in_the_way(
    tmp_path: Path, tokenizer: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, call, after = MOMENTS[moment]
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call, after=after)
        process = in_process(lambda: build(tmp_path, tokenizer))
        process.join()
    assert process.exitcode == -signal.SIGKILL
    left = os.listdir(tmp_path / "cache")
    assert any(one.startswith(".building-") for one in left)
    expected = build(tmp_path, tokenizer, "elsewhere")
    assert (expected.digest in left) == (moment == "after the rename")
    assert_same(build(tmp_path, tokenizer), expected)
    if moment == "after the rename":  # nothing to build, nothing cleaned: the next that builds does
        (tmp_path / "a.jsonl").write_text('{"prompt": "one", "response": "two"}\n')
        other = build(tmp_path, tokenizer)
        assert sorted(os.listdir(tmp_path / "cache")) == sorted([expected.digest, other.digest])
    else:
        assert os.listdir(tmp_path / "cache") == [expected.digest]


def test_the_folder_of_a_living_builder_stays(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build(tmp_path, tokenizer, "elsewhere")
    started, go, results = FORK.Event(), FORK.Event(), FORK.SimpleQueue()
    write = token_store.write_store

    def slow() -> None:
        def waiting(*args: Any) -> Any:
            started.set()
            assert go.wait(60)
            return write(*args)

        monkeypatch.setattr(token_store, "write_store", waiting)
        results.put(build(tmp_path, tokenizer).tokens.tobytes())

    process = in_process(slow)
    assert started.wait(60)
    assert_same(build(tmp_path, tokenizer), expected)
    assert len(os.listdir(tmp_path / "cache")) == 2
    go.set()
    assert results.get() == expected.tokens.tobytes()
    process.join()
    assert os.listdir(tmp_path / "cache") == [expected.digest]


@pytest.mark.parametrize("name", ["about.json", "tokens.bin", "trained.bin", "offsets.npy", "supervised.npy"])
def test_a_truncated_file_is_named(tmp_path: Path, tokenizer: Any, name: str) -> None:
    file = tmp_path / "cache" / build(tmp_path, tokenizer).digest / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged token store, delete it to build it again"):
        build(tmp_path, tokenizer)
