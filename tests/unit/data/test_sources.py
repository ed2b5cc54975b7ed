"""Rows of training files: what is read, and that each mistake is named with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.data.sources.rows import read_rows
from megatron_probsft.runtime.errors import UserError

PAIR = {"prompt": "p", "response": "r"}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def json_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_pairs_from_both_formats_in_the_order_given(tmp_path: Path) -> None:
    # `extra` has two types, which readers that infer a schema refuse.
    lines = json_lines(
        tmp_path / "a.jsonl", [{**PAIR, "extra": 1}, "", {"prompt": "", "response": "ü", "extra": "x"}]
    )
    table = parquet(tmp_path / "b.parquet", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(3000)])
    rows = list(read_rows([table, lines]))
    assert rows[2999] == {
        "prompt": "p2999", "response": "r2999", "weights": None, "source": 0, "row": 3000,
    }  # fmt: skip
    assert rows[3000:] == [
        {"prompt": "p", "response": "r", "weights": None, "source": 1, "row": 1},
        {"prompt": "", "response": "ü", "weights": None, "source": 1, "row": 3},
    ]
    assert [reader_of(file).count() for file in (table, lines)] == [3000, 3]


@pytest.mark.parametrize("write", [json_lines, parquet])
def test_nested_names_and_other_names(tmp_path: Path, write: Any) -> None:
    row = {"extra_info": {"question": "q", "more": {"answer": "a"}}, "dotted.name": "d"}
    file = write(tmp_path / ("a.jsonl" if write is json_lines else "a.parquet"), [row])
    [row] = read_rows([file], prompt_key="extra_info.question", response_key="extra_info.more.answer")
    assert row == {"prompt": "q", "response": "a", "weights": None, "source": 0, "row": 1}
    [row] = read_rows([file], prompt_key="extra_info.question", response_key="dotted.name")
    assert row["response"] == "d"


@pytest.mark.parametrize("write", [json_lines, parquet])
def test_conversations(tmp_path: Path, write: Any) -> None:
    rows = [{"chat": CHAT}, {"chat": [{"role": "system", "content": "s", "name": None}, *CHAT]}]
    file = write(tmp_path / ("a.jsonl" if write is json_lines else "a.parquet"), rows)
    loaded = list(read_rows([file], messages_key="chat"))
    assert loaded[0] == {"messages": CHAT, "weights": None, "source": 0, "row": 1}
    assert [m["role"] for m in loaded[1]["messages"]] == ["system", "user", "assistant"]


def test_a_prompt_column_goes_before_messages(tmp_path: Path) -> None:
    [row] = read_rows([json_lines(tmp_path / "a.jsonl", [{**PAIR, "messages": CHAT}])])
    assert (row["prompt"], "messages" in row) == ("p", False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR, "", "{bad"], "a.jsonl:3: not valid JSON"),
        ([PAIR, "[1]"], "a.jsonl:2: is of type list, not a JSON object"),
        ([PAIR, {"prompt": 5, "response": "r"}], "a.jsonl:2: 'prompt' is of type int, not a string"),
        ([{"prompt": CHAT, "response": "r"}], "a.jsonl:1: 'prompt' is of type list, not a string (conv"),
        ([PAIR, {"prompt": "p"}], "a.jsonl:2: 'response' is missing"),
        ([PAIR, {"response": "r"}], "a.jsonl:2: 'prompt' is missing"),
        ([PAIR, {"prompt": None, "response": "r"}], "a.jsonl:2: 'prompt' is null"),
        ([PAIR, {"prompt": "p", "response": None}], "a.jsonl:2: 'response' is null"),
        ([PAIR, {"prompt": "p", "response": ""}], "a.jsonl:2: 'response' is empty"),
        ([PAIR, {"prompt": "p", "response": "\ud800"}], "a.jsonl:2: 'response' is not valid Unicode"),
        ([{"question": "q", "info": {"a": 1}}],
         "a.jsonl: has no column 'prompt' nor 'messages'; its columns are question, info.a"),
        ([{"prompt": "q", "answer": 1}], "a.jsonl: has no column 'response'; its columns are prompt, answer"),
        (["", " "], "a.jsonl: there are no rows"),
        ([{"messages": CHAT}, {"messages": "hi"}], "a.jsonl:2: 'messages' is of type str, not a list"),
        ([{"messages": CHAT}, {"messages": []}], "a.jsonl:2: 'messages' is an empty list"),
        ([{"messages": CHAT}, {"messages": ["hi"]}], "a.jsonl:2: message 1 is of type str, not an object"),
        ([{"messages": [{"role": "user"}]}], "a.jsonl:1: message 1: 'content' is missing"),
        ([{"messages": [CHAT[0], {**CHAT[1], "tool_calls": [1]}]}], 
         "a.jsonl:1: message 2: 'tool_calls': call 1 has no function with a name"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    file = json_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as error:
        list(read_rows([file]))
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(error.value)


def test_bad_rows_of_parquet_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r"}] * 2500
    file = parquet(tmp_path / "a.parquet", [*rows, {"prompt": "p", "response": None}])
    with pytest.raises(UserError, match=r"a\.parquet:2501: 'response' is null"):
        list(read_rows([file]))
    file = parquet(tmp_path / "b.parquet", [{"prompt": CHAT, "response": "r"}])
    with pytest.raises(UserError, match=r"b\.parquet:1: 'prompt' is of type list, not a string"):
        list(read_rows([file]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = json_lines(tmp_path / "good.jsonl", [PAIR])
    chats = json_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.csv").write_text("prompt,response\n")
    (tmp_path / "text.parquet").write_text("no")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    for file, message in [
        ("absent.jsonl", "no such data file"),
        ("empty.jsonl", "the file is empty"), ("a.csv", "extension '.csv'"),
        ("text.parquet", "not a parquet file"), ("none.parquet", "there are no rows"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"{file}: {message}"):
            read_rows([good, str(tmp_path / file)])
    with pytest.raises(UserError, match=r"good\.jsonl holds pairs but .*chats\.jsonl does not"):
        read_rows([good, chats])
    with pytest.raises(UserError, match="no data file"):
        read_rows([])
