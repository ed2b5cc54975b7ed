"""Weights of rows and messages: what is read, refused and stored, and how a step's are scaled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_probsft.data.packing import make_microbatch
from megatron_probsft.data.sources.rows import read_rows
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.text.templates import encode_messages, encode_pair
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store

PAIR = {"prompt": "p", "response": "r"}
USER = {"role": "user", "content": "one?"}


def assistant(content: str, weight: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({} if weight is None else {"weight": weight})}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return save_tiny_tokenizer(tmp_path / "tokenizer")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def build(file: str, tokenizer: Any, weight_key: str | None = None, **changes: Any) -> TokenStore:
    settings: dict[str, Any] = {"seq_length": 400, "vocab_size": VOCAB_SIZE, "log": lambda _: None}
    settings |= {"template": "chat", "cache_dir": Path(file).with_suffix(".store")}
    return build_store([file], tokenizer, weight_key=weight_key, **settings | changes)


def weights_of(files: list[str], **keys: Any) -> list[list[float] | None]:
    return [row["weights"] for row in read_rows(files, **keys)]


def test_rows_and_messages_multiply(tmp_path: Path) -> None:
    chats = [
        {
            "messages": [USER, assistant("a", 0), USER, assistant("b", 0.5), USER, assistant("c")],
            "info": {"w": 3},
        },
        {"messages": [USER, assistant("a", 0.5)], "info": {"w": 2}},
        {"messages": [{**USER, "weight": 0}, assistant("a")], "info": {"w": 1}},
    ]
    file = write(tmp_path / "a.jsonl", chats)
    assert weights_of([file], weight_key="info.w") == [[0.0, 1.5, 3.0], None, None]
    assert weights_of([file]) == [[0.0, 0.5, 1.0], [0.5], None]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "a.parquet")  # messages without weight: null
    assert weights_of([str(tmp_path / "a.parquet")]) == [[0.0, 0.5, 1.0], [0.5], None]
    pairs = write(tmp_path / "b.jsonl", [{**PAIR, "w": 1}, {**PAIR, "w": 0.25}])
    assert weights_of([pairs], weight_key="w") == [None, [0.25]]


@pytest.mark.parametrize(
    ("rows", "key", "message"),
    [
        ([{**PAIR, "w": "1"}], "w", "a.jsonl:1: 'w' is of type str, not a number"),
        ([{**PAIR, "w": True}], "w", "a.jsonl:1: 'w' is of type bool, not a number"),
        ([{**PAIR, "w": 1}, PAIR], "w", "a.jsonl:2: 'w' is missing, not a number"),
        ([{**PAIR, "w": 1}, {**PAIR, "w": None}], "w", "a.jsonl:2: 'w' is null, not a number"),
        ([{**PAIR, "w": -0.5}], "w", "a.jsonl:1: 'w' is -0.5: a weight is from 0 to 1e+18"),
        ([{**PAIR, "w": float("nan")}], "w", "a.jsonl:1: 'w' is nan: a weight is from 0 to 1e+18"),
        ([{**PAIR, "w": float("inf")}], "w", "a.jsonl:1: 'w' is inf: a weight is from 0 to 1e+18"),
        ([{**PAIR, "w": 1}, {**PAIR, "w": 0}], "w", "a.jsonl:2: all its weights are 0, so nothing in it is"),
        ([{**PAIR, "info": {"w": 1}}], "w", "a.jsonl: has no column 'w' of --weight-key; its columns are"),
        ([{"messages": [USER, assistant("a", 0)]}], None, "a.jsonl:1: all its weights are 0"),
        ([{"messages": [USER, assistant("a", "x")]}], None, "a.jsonl:1: message 2: 'weight' is of type str"),
        ([{"messages": [USER, assistant("a", -1)]}], None, "a.jsonl:1: message 2: 'weight' is -1: a weight"),
        ([{"messages": [{**USER, "weight": 1}, assistant("a")]}], None,
         "a.jsonl:1: message 1 has a weight, but only an assistant message is trained"),
    ],
)  # fmt: skip
def test_bad_weights_are_named(tmp_path: Path, rows: list[Any], key: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        list(read_rows([write(tmp_path / "a.jsonl", rows)], weight_key=key))
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(error.value)


def test_weights_are_stored_by_token(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{**PAIR, "w": 1}, {"prompt": "one", "response": "it is three", "w": 2.5}, {**PAIR, "w": 0.1}]
    store = build(write(tmp_path / "a.jsonl", rows), tokenizer, "w")
    assert store.weights is not None
    assert store.weights.dtype == np.float32
    for index, row in enumerate(rows):
        tokens, trained = encode_pair(tokenizer, row["prompt"], row["response"], "chat")
        assert [a.tolist() for a in store.sample(index)] == [tokens, trained]
        assert store.weights_of(index).tolist() == [float(np.float32(row["w"])) * flag for flag in trained]
        assert store.weight_sums is not None
        assert store.weight_sums[index] == pytest.approx(row["w"] * store.supervised[index])
    plain = build(str(tmp_path / "a.jsonl"), tokenizer)
    assert plain.weights is None
    assert plain.weight_sums is None
    assert plain.digest != store.digest
    assert not list((tmp_path / "a.store" / plain.digest).glob("weight*"))


def test_a_turn_of_weight_0_is_an_untrained_one(tmp_path: Path, tokenizer: Any) -> None:
    def stored(*weights: float) -> tuple[list[int], list[bool], list[float]]:
        turns = [message for w in weights for message in (USER, assistant("it is two", w))]
        store = build(write(tmp_path / "a.jsonl", [{"messages": turns}]), tokenizer)
        assert store.weights is not None
        tokens, trained = store.sample(0)
        assert store.supervised.tolist() == [trained.sum()]
        return tokens.tolist(), trained.tolist(), store.weights.tolist()

    messages = [USER, assistant("it is two")] * 3
    tokens, trained = encode_messages(tokenizer, messages, "chat")
    end_of_first = trained.index(False, trained.index(True))
    start_of_second = trained.index(True, end_of_first)
    start_of_third = trained.index(True, trained.index(False, start_of_second))
    first = slice(end_of_first)
    second, third = slice(start_of_second, start_of_third), slice(start_of_third, None)

    def only(*kept: tuple[slice, float]) -> list[float]:
        weights = np.zeros(len(tokens))
        for where, weight in kept:
            weights[where] = np.asarray(trained)[where] * weight
        return weights.tolist()

    for given, expected in (
        ((0, 2, 1), only((second, 2), (third, 1))),
        ((0.5, 0, 4), only((first, 0.5), (third, 4))),
        ((3, 0, 0), only((first, 3))),  # the last turn's EOS is there, and untrained
    ):
        assert stored(*given) == (tokens, [w > 0 for w in expected], expected)


def test_truncation_cuts_weights_as_tokens(tmp_path: Path, tokenizer: Any) -> None:
    turns = [USER, assistant("it is one", 0.5), USER, assistant("two and three", 0)]
    file = write(tmp_path / "a.jsonl", [{"messages": turns}])
    whole = build(file, tokenizer)
    assert whole.weights is not None
    n = len(whole.tokens)
    cut = build(file, tokenizer, seq_length=n - 4, truncation="right")
    assert cut.weights is not None
    np.testing.assert_array_equal(cut.weights, whole.weights[: n - 3])
    np.testing.assert_array_equal(cut.tokens, whole.tokens[: n - 3])  # an untrained turn gets no EOS
    cut = build(file, tokenizer, seq_length=n - 4, truncation="left")
    assert cut.weights is not None
    np.testing.assert_array_equal(cut.weights, whole.weights[3:])
    with pytest.raises(UserError, match="none of 1 samples is left"):  # only the turn of weight 0 remains
        build(file, tokenizer, seq_length=5, truncation="left")


def test_packs_carry_the_weights_of_their_labels(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{**PAIR, "w": 1}, {"prompt": "one", "response": "it is three", "w": 2.5}, {**PAIR, "w": 0.1}]
    store = build(write(tmp_path / "a.jsonl", rows), tokenizer, "w")
    lengths = store.lengths - 1
    pack: Any = make_microbatch(store, [2, 1], int(lengths[1:].sum()) + 3)
    expected = np.concatenate([store.weights_of(2)[1:], store.weights_of(1)[1:], np.zeros(3)])
    assert pack["weights"].dtype == np.float32
    assert pack["weights"].tolist() == expected.tolist()
    assert ((pack["weights"] > 0) == (pack["labels"] >= 0)).all()
    scale = store.weight_scale(np.array([2, 1]))
    assert pack["weights"].sum() * scale == pytest.approx(store.supervised[1:].sum())
