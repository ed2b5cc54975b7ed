"""The token store: its content against encoding row by row, its cache, its truncation, its errors."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_probsft.data.store import token_store
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.text.templates import encode_messages, encode_pair
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return save_tiny_tokenizer(tmp_path / "tokenizer")


def write_pairs(path: Path, count: int) -> list[tuple[str, str]]:
    pairs = [(f"sum {i}?", f"it is {i}" * (1 + i % 5)) for i in range(count)]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    return pairs


def build(folder: Path, tokenizer: Any, *, file: str = "a.jsonl", **changes: Any) -> TokenStore:
    settings: dict[str, Any] = {
        "template": "chat",
        "seq_length": 400,
        "vocab_size": VOCAB_SIZE,
        "log": lambda _: None,
    }
    settings["cache_dir"] = folder / "cache"
    return build_store([str(folder / file)], tokenizer, **settings | changes)


def content(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    return [(t.tolist(), f.tolist()) for t, f in map(store.sample, range(len(store)))]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_pairs_are_stored_as_encoded_one_by_one(tmp_path: Path, tokenizer: Any, template: str) -> None:
    pairs = write_pairs(tmp_path / "a.jsonl", 1203)  # several batches
    store = build(tmp_path, tokenizer, template=template)
    expected = [encode_pair(tokenizer, p, r, template) for p, r in pairs]
    assert content(store) == expected
    assert (store.tokens.dtype, store.trained.dtype) == (np.int32, np.bool_)
    assert (store.offsets.dtype, store.lengths.dtype, store.supervised.dtype) == (
        np.int64,
        np.int32,
        np.int32,
    )
    assert store.offsets.tolist() == np.cumsum([0] + [len(t) for t, _ in expected]).tolist()
    assert store.lengths.tolist() == [len(t) for t, _ in expected]
    assert store.supervised.tolist() == [sum(f[1:]) for _, f in expected]
    responses = [len(tokenizer(r, add_special_tokens=False)["input_ids"]) for _, r in pairs]
    assert store.supervised.tolist() == [n + 1 for n in responses]
    assert store.sources == [str(tmp_path / "a.jsonl")]
    assert np.shares_memory(store.sample(3)[0], store.tokens)


def test_a_trained_first_token_is_no_label(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "", "response": "it is"}\n')
    store = build(tmp_path, tokenizer, template="plain")
    assert store.trained.all()
    assert store.supervised.tolist() == [len(store.tokens) - 1]


def test_each_sample_knows_its_source(tmp_path: Path, tokenizer: Any) -> None:
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    counts = [700, 3, 600]
    for file, count in zip(files, counts, strict=True):
        write_pairs(Path(file), count)
    settings: dict[str, Any] = {"template": "plain", "vocab_size": VOCAB_SIZE, "log": lambda _: None}
    store = build_store(files, tokenizer, seq_length=400, cache_dir=tmp_path / "c", **settings)
    assert (store.source.dtype, store.sources) == (np.int32, files)
    assert store.source.tolist() == np.repeat([0, 1, 2], counts).tolist()
    limit = int(np.median(store.lengths)) - 1
    settings |= {"seq_length": limit, "truncation": "drop"}
    dropped = build_store(files, tokenizer, cache_dir=tmp_path / "c", **settings)
    assert dropped.source.tolist() == store.source[store.lengths - 1 <= limit].tolist()
    assert len(dropped) < len(store)


def test_conversations_are_stored(tmp_path: Path, tokenizer: Any) -> None:
    turn = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "it is one"}]
    rows = [turn * n for n in (1, 2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    assert content(build(tmp_path, tokenizer)) == [encode_messages(tokenizer, row, "chat") for row in rows]


def test_processes_change_nothing_and_the_environment_stays(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "off")
    write_pairs(tmp_path / "a.jsonl", 1203)
    one = build(tmp_path, tokenizer, num_workers=1)
    expected = content(one)
    (tmp_path / "cache").rename(tmp_path / "cache of one")
    two = build(tmp_path, tokenizer, num_workers=2)
    assert content(two) == expected
    assert two.digest == one.digest
    assert os.environ["TOKENIZERS_PARALLELISM"] == "off"


def test_the_second_time_opens_the_cache(tmp_path: Path, tokenizer: Any) -> None:
    write_pairs(tmp_path / "a.jsonl", 20)
    lines: list[str] = []
    first = build(tmp_path, tokenizer, log=lines.append)
    assert "tokenized 20 samples" in lines[-1]
    assert f"{len(first.tokens):,} tokens" in lines[-1]
    assert os.listdir(tmp_path / "cache") == [first.digest]
    assert sorted(os.listdir(tmp_path / "cache" / first.digest)) == [
        "about.json", "offsets.npy", "source.npy", "supervised.npy", "tokens.bin", "trained.bin",
    ]  # fmt: skip
    lines.clear()
    again = build(tmp_path, save_tiny_tokenizer(tmp_path / "tokenizer"), log=lines.append)
    assert (content(again), again.digest) == (content(first), first.digest)
    assert [line.startswith("20 samples, ") and "from before" in line for line in lines] == [True]


def test_the_digest_knows_all_that_changes_the_content(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"prompt": "one", "response": "two", "p2": "one", "r2": "two", "messages": []}\n'
    (tmp_path / "a.jsonl").write_text(row)
    (tmp_path / "same.jsonl").write_text(row)
    digests = [build(tmp_path, tokenizer).digest]
    same = build(tmp_path, tokenizer, file="same.jsonl", num_workers=1)
    assert (same.digest, same.sources) == (digests[0], [str(tmp_path / "same.jsonl")])
    changes: list[dict[str, Any]] = [
        {"template": "plain"}, {"seq_length": 401}, {"vocab_size": 400}, {"truncation": "drop"},
        {"prompt_key": "p2"}, {"response_key": "r2"},
    ]  # fmt: skip
    digests += [build(tmp_path, tokenizer, **change).digest for change in changes]
    digests.append(build(tmp_path, tokenizer, template="qwen-boxed").digest)
    monkeypatch.setitem(NAMED_TEMPLATES, "qwen-boxed", NAMED_TEMPLATES["qwen-figlet"])
    digests.append(build(tmp_path, tokenizer, template="qwen-boxed").digest)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}:{% endfor %}"
    digests.append(build(tmp_path, tokenizer).digest)
    tokenizer.eos_token = "<|endoftext|>"
    digests.append(build(tmp_path, tokenizer).digest)
    tokenizer.add_tokens(["sum"])
    digests.append(build(tmp_path, tokenizer).digest)
    (tmp_path / "a.jsonl").write_text(row.replace("one", "two"))
    digests.append(build(tmp_path, tokenizer).digest)
    assert len(set(digests)) == len(digests)


def test_a_store_of_before_has_the_same_name(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests as they were before the options became one object: no refactoring may build stores again.

    The tokenizer's own part changes with its libraries, so it is left out here.
    """
    monkeypatch.setattr(token_store, "tokenizer_identity", lambda _: "tokenizer")
    row = {"prompt": "one", "response": "two", "p2": "one", "r2": "two", "m2": 1, "w2": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    changed = {"prompt_key": "p2", "response_key": "r2", "messages_key": "m2", "weight_key": "w2"}
    digests = [
        build(tmp_path, tokenizer).digest,
        build(tmp_path, tokenizer, template_date="2024-02-29").digest,  # which the template does not show
        build(tmp_path, tokenizer, template="plain", truncation="left", **changed).digest,
        build(tmp_path, tokenizer, template="qwen-boxed").digest,
    ]
    tokenizer.chat_template = "{% if false %}{{ strftime_now('%Y') }}{% endif %}" + tokenizer.chat_template
    digests.append(build(tmp_path, tokenizer, template_date="2024-02-29").digest)
    assert digests == [
        "921fe6f2243560b019a8a8d91c58fcf0",
        "921fe6f2243560b019a8a8d91c58fcf0",
        "8e5b2d20dd751379ff4569d94b38949d",
        "8b6a27a93669bd600f24ba5360de7f72",
        "830d7b2909dbe87d6c24fbeca7f90ce4",
    ]


def test_the_tokenizers_passing_state_is_not_in_the_digest(tmp_path: Path, tokenizer: Any) -> None:
    """Some tokenizer.json hold truncation and padding, which every call of the tokenizer resets."""
    write_pairs(tmp_path / "a.jsonl", 3)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding()
    first = build(tmp_path, tokenizer)
    assert first.lengths.min() > 4
    assert build(tmp_path, tokenizer).digest == first.digest


def three(tmp_path: Path, tokenizer: Any, truncation: str, limit: int) -> list[tuple[list[int], list[bool]]]:
    """Rows: short; a long response; a prompt so long that right truncation leaves no response."""
    pairs = [("one", "two"), ("one", "two and three and"), ("what is the sum of", "two")]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs)
    )
    return content(build(tmp_path, tokenizer, template="plain", seq_length=limit, truncation=truncation))


def test_truncation(tmp_path: Path, tokenizer: Any) -> None:
    short, response, prompt = three(tmp_path, tokenizer, "error", 100)
    limit = max(len(short[0]), 6)  # in tokens: positions + 1
    assert len(response[0]) > limit
    assert len(prompt[0]) > limit
    eos = tokenizer.eos_token_id
    assert three(tmp_path, tokenizer, "drop", limit - 1) == [short]
    left = three(tmp_path, tokenizer, "left", limit - 1)
    assert left == [
        short,
        (response[0][-limit:], response[1][-limit:]),
        (prompt[0][-limit:], prompt[1][-limit:]),
    ]
    assert left[2][0][-1] == eos
    right = three(tmp_path, tokenizer, "right", limit - 1)
    kept_prompt = response[1].index(True)
    assert right == [
        short,
        ([*response[0][: limit - 1], eos], [False] * kept_prompt + [True] * (limit - kept_prompt)),
    ]


def test_the_longest_sample_allowed_has_seq_length_positions(tmp_path: Path, tokenizer: Any) -> None:
    write_pairs(tmp_path / "a.jsonl", 5)
    longest = int(build(tmp_path, tokenizer).lengths.max())
    assert len(build(tmp_path, tokenizer, seq_length=longest - 1)) == 5
    with pytest.raises(UserError) as error:
        build(tmp_path, tokenizer, seq_length=longest - 2)
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:5: the sample has {longest - 1} positions, more than --seq-length "
        f"{longest - 2}: raise it, or choose --truncation drop, left or right"
    )


def test_right_truncation_between_turns_adds_no_eos(tmp_path: Path, tokenizer: Any) -> None:
    turn = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "it is"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turn * 2}) + "\n")
    tokens, trained = encode_messages(tokenizer, turn * 2, "chat")
    cut = trained.index(False, trained.index(True)) + 3  # inside the second user turn
    stored = content(build(tmp_path, tokenizer, seq_length=cut - 1, truncation="right"))
    assert stored == [(tokens[:cut], trained[:cut])]


def test_what_is_left_out_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    pairs = write_pairs(tmp_path / "a.jsonl", 50)
    lengths = [len(encode_pair(tokenizer, p, r, "chat")[0]) for p, r in pairs]
    limit = int(np.median(lengths))
    over = sum(n - 1 > limit for n in lengths)
    lines: list[str] = []
    build(tmp_path, tokenizer, seq_length=limit, truncation="drop", log=lines.append)
    assert lines[-1].endswith(f"longer than --seq-length {limit}: 0 cut, {over} left out")
    build(tmp_path, tokenizer, seq_length=limit, truncation="left", log=lines.append)
    assert lines[-1].endswith(f"longer than --seq-length {limit}: {over} cut, 0 left out")
    again = build(tmp_path, tokenizer, seq_length=limit, truncation="drop", log=lines.append)
    assert lines[-1].endswith(f"from before; longer than --seq-length {limit}: 0 cut, {over} left out")
    assert (again.cut, again.left_out, len(again)) == (0, over, 50 - over)
    with pytest.raises(UserError, match="none of 50 samples is left at --seq-length 3"):
        build(tmp_path, tokenizer, seq_length=3, truncation="drop")


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_the_row_also_from_other_processes(tmp_path: Path, tokenizer: Any, workers: int) -> None:
    write_pairs(tmp_path / "a.jsonl", 30)
    with pytest.raises(
        UserError, match=r"a\.jsonl:\d+: vocabulary label out of range: token id \d+ .* 100: the"
    ):
        build(tmp_path, tokenizer, vocab_size=100, num_workers=workers)
    bad = [{"role": "user", "content": "one?"}, {"role": "robot", "content": "it is"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": bad}) + "\n")
    with pytest.raises(UserError, match=r"b\.jsonl:1: message 2 has the role 'robot'"):
        build(tmp_path, tokenizer, file="b.jsonl", num_workers=workers)
    assert os.listdir(tmp_path / "cache") == []


def test_errors_before_any_work(tmp_path: Path, tokenizer: Any) -> None:
    write_pairs(tmp_path / "a.jsonl", 3)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="--template plain"):
        build(tmp_path, tokenizer)
    with pytest.raises(UserError, match="--truncation middle is unknown"):
        build(tmp_path, tokenizer, template="plain", truncation="middle")
    with pytest.raises(UserError, match=r"b\.jsonl: no such data file"):
        build(tmp_path, tokenizer, template="plain", file="b.jsonl")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cache: cannot keep the tokenized data here"):
        build(tmp_path, tokenizer, template="plain")


def test_a_sample_without_a_label(tmp_path: Path, tokenizer: Any) -> None:
    from tokenizers.normalizers import Strip

    tokenizer.backend_tokenizer.normalizer = Strip()
    (tmp_path / "a.jsonl").write_text('{"prompt": "", "response": " "}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: the sample has no label"):
        build(tmp_path, tokenizer, template="plain")


def build_in_a_fork(folder: Path, tokenizer: Any, name: str, run: Callable[[], object]) -> Any:
    """A process that builds the store in `folder/name` and calls `run` when all but the rename is done."""

    def target() -> None:
        write = token_store.write_store

        def write_then_run(*arguments: Any) -> Any:
            result = write(*arguments)
            run()
            return result

        token_store.write_store = write_then_run
        store = build(folder, tokenizer, cache_dir=folder / name, num_workers=1)
        assert content(store) == content(build(folder, tokenizer, cache_dir=folder / "expected"))

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def test_races_and_kills_leave_whole_stores(tmp_path: Path, tokenizer: Any) -> None:
    """Two processes are about to rename at the same moment; a third is killed at that moment."""
    write_pairs(tmp_path / "a.jsonl", 300)
    expected = build(tmp_path, tokenizer, cache_dir=tmp_path / "expected")
    both_written = multiprocessing.get_context("fork").Barrier(2, timeout=60)
    processes = [
        build_in_a_fork(tmp_path, tokenizer, "raced", both_written.wait),
        build_in_a_fork(tmp_path, tokenizer, "raced", both_written.wait),
        build_in_a_fork(tmp_path, tokenizer, "killed", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    ]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, -signal.SIGKILL]
    assert os.listdir(tmp_path / "raced") == [expected.digest]

    left = os.listdir(tmp_path / "killed")
    assert len(left) == 1
    assert left[0].startswith(".building-")
    lines: list[str] = []
    again = build(tmp_path, tokenizer, cache_dir=tmp_path / "killed", log=lines.append)
    assert "tokenized 300 samples" in lines[-1]
    assert content(again) == content(expected)


def test_a_damaged_store_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    write_pairs(tmp_path / "a.jsonl", 30)
    folder = tmp_path / "cache" / build(tmp_path, tokenizer).digest
    tokens = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(tokens[:-4])
    with pytest.raises(UserError, match="damaged token store, delete it"):
        build(tmp_path, tokenizer)
    (folder / "tokens.bin").unlink()
    with pytest.raises(UserError, match="damaged token store, delete it"):
        build(tmp_path, tokenizer)


def test_opening_takes_no_tokenization(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "a.jsonl", 30)
    build(tmp_path, tokenizer)
    monkeypatch.setattr("megatron_probsft.data.store.token_store.read_rows", lambda *_, **__: 1 / 0)
    started = time.monotonic()
    assert len(build(tmp_path, tokenizer)) == 30
    assert time.monotonic() - started < 1


@pytest.mark.size("test")
def test_where_there_are_gpus_no_process_is_forked_from_this_one(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "a.jsonl", 1203)
    expected = content(build(tmp_path, tokenizer, num_workers=1))
    (tmp_path / "cache").rename(tmp_path / "cache of one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("CUDA and NCCL do not stand a fork"))
    assert content(build(tmp_path, tokenizer, num_workers=2)) == expected
