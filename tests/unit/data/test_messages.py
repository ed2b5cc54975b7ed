"""Every message of data/ once, as a user meets it: one line that names the place; none is left out."""

from __future__ import annotations

import ast
import datetime
import errno
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from megatron_probsft.data.sources import columns, json_files, messages, readers
from megatron_probsft.data.sources import rows as sources
from megatron_probsft.data.store import encoding, token_store, workers
from megatron_probsft.data.text import chat, chat_source, conversation, renderer, templates
from megatron_probsft.data.text.templates import encode_messages
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import CHATML, VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store

PAIR = {"prompt": "one", "response": "two"}
USER, ANSWER = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "it is"}
COVERED = (
    messages, columns, sources, json_files, readers, chat, chat_source, conversation, renderer, templates,
    encoding, workers, token_store,
)  # fmt: skip


class World:
    """A folder with data, and what a call of `build_store` needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = save_tiny_tokenizer(folder / "tokenizer")
        self.write("good.jsonl", PAIR)

    def write(self, name: str, *rows: Any) -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.folder / name).write_text("".join(line + "\n" for line in lines))
        return name

    def build(self, *names: str, **changes: Any) -> Any:
        settings: dict[str, Any] = {"template": "chat", "seq_length": 99, "vocab_size": VOCAB_SIZE}
        settings |= {"cache_dir": self.folder / "cache", "log": lambda _: None}
        items = [name if name.startswith("hub/") else f"{self.folder}/{name}" for name in names]
        return build_store(items, self.tokenizer, **settings | changes)

    def rows(self, *rows: Any, **changes: Any) -> Any:
        return self.build(self.write("a.jsonl", *rows), **changes)

    def messages(self, *messages: Any, **changes: Any) -> Any:
        return self.rows({"messages": list(messages)}, **changes)


def _dataset(world: World, name: str, **splits: Any) -> str:
    dataset = Dataset.from_list([PAIR])
    (DatasetDict({"train": dataset}) if splits else dataset).save_to_disk(world.folder / name)
    return name


def _parquet(world: World, *rows: Any) -> str:
    Dataset.from_list(list(rows)).to_parquet(world.folder / "a.parquet")
    return "a.parquet"


def _damaged(world: World, content: bytes | None) -> Any:
    file = world.folder / "cache" / world.build("good.jsonl").digest / "trained.bin"
    file.unlink() if content is None else file.write_bytes(content)
    return world.build("good.jsonl")


def _full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch:
        patch.setattr(token_store, "write_store", write)
        return world.build("good.jsonl")


def _killed(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return world.build("good.jsonl", num_workers=2)


def _hub(world: World, monkeypatch: pytest.MonkeyPatch, outcome: Exception) -> Any:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise outcome

    readers._load_from_hub.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("datasets.load_dataset", load_dataset)
        return world.build("hub/words:train")


def _changed(world: World, **attributes: Any) -> World:
    for name, value in attributes.items():
        setattr(world.tokenizer, name, value)
    return world


def _no_space(world: World) -> World:
    from tokenizers.normalizers import Strip

    world.tokenizer.backend_tokenizer.normalizer = Strip()
    return world


CASES: dict[str, Callable[[World, pytest.MonkeyPatch], Any]] = {
    # files and folders
    "no data file given": lambda w, _: w.build(),
    "good.csv: extension '.csv' is none of .jsonl": lambda w, _: w.build(w.write("good.csv", "a,b")),
    "empty.jsonl: the file is empty": lambda w, _: w.build(w.write("empty.jsonl")),
    "absent.jsonl: no such data file or folder": lambda w, _: w.build("absent.jsonl"),
    "a.jsonl.gz: damaged, it cannot be unpacked: ": lambda w, _: w.build(w.write("a.jsonl.gz", "no")),
    "a.jsonl.zst: damaged, it cannot be unpacked: ": lambda w, _: w.build(w.write("a.jsonl.zst", "no")),
    "a.json: not valid JSON, an array of objects: ": lambda w, _: w.build(w.write("a.json", "[", "{}", "{")),
    "deep.jsonl:1: not valid JSON, one object per line: it is nested too deeply": lambda w, _: w.build(
        w.write("deep.jsonl", '{"a":' * 100_000)
    ),
    "a.parquet: not a parquet file": lambda w, _: w.build(w.write("a.parquet", "no")),
    "blank.jsonl: there are no rows": lambda w, _: w.build(w.write("blank.jsonl", "", " ")),
    "tokenizer: not a whole folder of Dataset.save_to_disk": lambda w, _: w.build("tokenizer"),
    "one:train: {0}/one has no splits, give it without :train": lambda w, _: w.build(
        _dataset(w, "one") + ":train"
    ),
    "two:test: has no split 'test': {0}/two:train": lambda w, _: w.build(_dataset(w, "two", n=1) + ":test"),
    "hub/words:train: no such file or folder, and on the hub it cannot be reached: ": lambda w, patch: _hub(
        w, patch, ConnectionError("Couldn't reach it")
    ),
    "hub/words:train: Unknown split (spelled owner/name:config:split)": lambda w, patch: _hub(
        w, patch, ValueError("Unknown\n split.")
    ),
    "good.jsonl holds pairs but {0}/chat.jsonl does not: give files of one": lambda w, _: w.build(
        "good.jsonl", w.write("chat.jsonl", {"messages": [USER, ANSWER]})
    ),
    # columns and rows
    "a.jsonl: has no column 'prompt' nor 'messages'; its columns are text": lambda w, _: w.rows({"text": 1}),
    "a.jsonl: has no column 'w' of --weight-key": lambda w, _: w.rows(PAIR, weight_key="w"),
    "a.jsonl:2: not valid JSON, one object per line": lambda w, _: w.rows(PAIR, "{"),
    "a.jsonl:2: is of type list, not a JSON object": lambda w, _: w.rows(PAIR, []),
    "a.jsonl:1: 'prompt' is of type int, not a string": lambda w, _: w.rows({**PAIR, "prompt": 1}),
    "a.jsonl:1: 'response' is not valid Unicode": lambda w, _: w.rows({**PAIR, "response": "\ud800"}),
    "a.jsonl:1: 'response' is empty: every row needs": lambda w, _: w.rows({**PAIR, "response": ""}),
    "a.jsonl:1: 'messages' is an empty list, not a list of {{role": lambda w, _: w.messages(),
    "a.jsonl:1: message 1 is of type str, not an object": lambda w, _: w.messages("hi"),
    "a.jsonl:1: message 2: 'name' is of type int, not a string": lambda w, _: w.messages(
        USER, {**ANSWER, "name": 1}
    ),
    "a.jsonl:1: message 2: is not valid Unicode": lambda w, _: w.messages(USER, {**ANSWER, "id": "\ud800"}),
    "a.parquet:1: message 2: holds what JSON cannot: ": lambda w, _: w.build(
        _parquet(w, {"messages": [USER, {**ANSWER, "at": datetime.datetime(2026, 1, 1)}]})
    ),
    "2 samples instead of one: turns that the chat template begins otherwise than its generation": lambda w,
    _: encode_messages(
        _changed(w, chat_template="{{ messages|length }}" + CHATML).tokenizer, [USER, ANSWER] * 2, "chat"
    ),
    "a.jsonl:1: message 1: 'from' is 'robot': use one of system, human": lambda w, _: w.rows(
        {"conversations": [{"from": "robot", "value": "x"}]}
    ),
    "a.jsonl:1: message 1 has content of type list whose part 1 is 'image_url': only text": lambda w, _: (
        w.messages({**USER, "content": [{"type": "image_url", "image_url": {}}]}, ANSWER)
    ),
    "a.jsonl:1: message 2: 'tool_calls' is of type dict, not a list": lambda w, _: w.messages(
        USER, {**ANSWER, "tool_calls": {"name": "f"}}
    ),
    "a.jsonl:1: message 2: 'tool_calls': call 1 has no function with a name": lambda w, _: w.messages(
        USER, {**ANSWER, "tool_calls": [{"function": {}}]}
    ),
    "a.jsonl:1: message 2: 'tool_calls': call 1: 'arguments' is a string that is no JSON: '{{'": lambda w,
    _: (w.messages(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})),
    "a.jsonl:1: message 2: 'tool_calls': call 1: 'arguments' is of type list": lambda w, _: w.messages(
        USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": []}}]}
    ),
    "a.jsonl:1: the chat template shows no tool_calls": lambda w, _: w.messages(
        USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    ),
    "a.jsonl:1: 'tools' is of type dict, not a list of objects": lambda w, _: w.rows(
        {**PAIR, "tools": {"a": 1}}
    ),
    "a.jsonl:1: 'tools' is a string that is no JSON": lambda w, _: w.rows({**PAIR, "tools": "f(x)"}),
    "a.jsonl:1: 'chat_template_kwargs' is of type list, not an object": lambda w, _: w.rows(
        {**PAIR, "chat_template_kwargs": [1]}
    ),
    "a.jsonl:1: 'chat_template_kwargs' cannot set 'tools'": lambda w, _: w.rows(
        {**PAIR, "chat_template_kwargs": {"tools": []}}
    ),
    "a.jsonl:1: 'system' is another text than the system message": lambda w, _: w.rows(
        {"system": "a", "messages": [{"role": "system", "content": "b"}, USER, ANSWER]}
    ),
    "a.jsonl:1: has 'system', which --template plain cannot show: use": lambda w, _: w.rows(
        {**PAIR, "system": "a"}, template="plain"
    ),
    "a.jsonl:1: 'history' holds earlier turns": lambda w, _: w.rows(
        {"instruction": "a", "output": "b", "history": [["c", "d"]]}
    ),
    # weights
    "a.jsonl:1: 'w' is of type str, not a number": lambda w, _: w.rows({**PAIR, "w": "1"}, weight_key="w"),
    "a.jsonl:1: 'w' is -1: a weight is from 0": lambda w, _: w.rows({**PAIR, "w": -1}, weight_key="w"),
    "a.jsonl:1: all its weights are 0": lambda w, _: w.rows({**PAIR, "w": 0}, weight_key="w"),
    "a.jsonl:1: message 1 has a weight, but": lambda w, _: w.messages({**USER, "weight": 1}, ANSWER),
    # templates
    "--template poem is unknown: use": lambda w, _: w.rows(PAIR, template="poem"),
    "--template llama-figlet needs <|begin_of_text|>, which is no": lambda w, _: w.rows(
        PAIR, template="llama-figlet"
    ),
    "--template plain takes prompt and response": lambda w, _: w.messages(USER, ANSWER, template="plain"),
    "the tokenizer has no (default) chat template": lambda w, _: _changed(w, chat_template=None).rows(PAIR),
    "the tokenizer has no EOS token": lambda w, _: _changed(w, eos_token=None).rows(PAIR),
    "a.jsonl:1: the chat template refuses the messages: no": lambda w, _: _changed(
        w, chat_template="{{ raise_exception('no\nthanks') }}"
    ).messages(USER, ANSWER),
    "a.jsonl:1: the chat template fails at the messages: TypeError": lambda w, _: _changed(
        w, chat_template=CHATML.replace("m['content']", "m['content'] + 1")
    ).messages(USER, ANSWER),
    "a.jsonl:1: the chat template does not show what assistants say": lambda w, _: _changed(
        w, chat_template="{{ messages[0].content }}:"
    ).rows(PAIR),
    "a.jsonl:1: the chat template shows nothing of message 2, an assistant's": lambda w, _: _changed(
        w,
        chat_template=CHATML.replace("m['content']", "m['content'] if m['content'] != 'two'").replace(
            "<|im_end|>", ""
        ),
    ).rows(PAIR),
    "a.jsonl:1: the chat template renders message 2 so that where the assistant's turn starts": lambda w, _: (
        _changed(
            w,
            chat_template="{% for m in messages %}{{ 'x' if 'two' in m.content else 'y' }}{{ m.content }}"
            "{% endfor %}{{ '?' if add_generation_prompt }}",
        ).rows(PAIR)
    ),
    "a.jsonl:1: the chat template marks nothing of the assistant's turns": lambda w, _: _changed(
        w, chat_template="{% generation %}{{ 'start' }}{% endgeneration %}" + CHATML
    ).rows(PAIR),
    "--template-date tomorrow is no date: write YYYY-MM-DD": lambda w, _: _changed(
        w, chat_template="{{ strftime_now('%d') }}" + CHATML
    ).rows(PAIR, template_date="tomorrow"),
    "the chat template is no Jinja template, line 2: ": lambda w, _: _changed(
        w, chat_template="\n{% for m in %}"
    ).rows(PAIR),
    "the chat template draws at random": lambda w, _: _changed(
        w, chat_template="{{ ['a', 'b'] | random }}" + CHATML
    ).rows(PAIR),
    "a.jsonl:1: message 1 has the role 'robot': use one of": lambda w, _: w.messages(
        {"role": "robot", "content": "x"}, ANSWER
    ),
    "message 1 has content of type int, not a string": lambda w, _: encode_messages(
        w.tokenizer, [{"role": "user", "content": 1}], "chat"
    ),
    "a.jsonl:1: message 2 is an empty assistant turn": lambda w, _: w.messages(
        USER, {**ANSWER, "content": ""}
    ),
    "a.jsonl:1: message 1 is an assistant turn": lambda w, _: w.messages(ANSWER),
    "a.jsonl:1: there is no assistant turn": lambda w, _: w.messages(USER),
    # tokens
    "a.jsonl:1: vocabulary label out of range: token id": lambda w, _: w.rows(PAIR, vocab_size=9),
    "a.jsonl:1: the sample has no label": lambda w, _: _no_space(w).rows(
        {"prompt": "", "response": " "}, template="plain"
    ),
    "a.jsonl:1: the sample has 14 positions, more than --seq-length 5": lambda w, _: w.rows(
        {"prompt": "one", "response": "two"}, seq_length=5
    ),
    "--truncation up is unknown: use error, drop": lambda w, _: w.rows(PAIR, truncation="up"),
    "a.jsonl: none of 1 samples is left at --seq-length 5": lambda w, _: w.rows(
        PAIR, seq_length=5, truncation="drop"
    ),
    "one of 2 processes that tokenize was killed (out of memory?): try fewer with --num": _killed,
    # the store
    "good.jsonl: cannot keep the tokenized data here: ": lambda w, _: w.build(
        "good.jsonl", cache_dir=w.folder / "good.jsonl"
    ),
    "cache: no space left for the tokenized data": _full_disk,
    "cache/*: damaged token store, delete it to build it again: ": lambda w, _: _damaged(w, None),
    "cache/*: damaged token store, delete it to build it again": lambda w, _: _damaged(w, b"1"),
}


def test_every_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = set()
    for number, (expected, provoke) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UserError) as caught:
            provoke(World(folder), monkeypatch)
        found, wanted = str(caught.value), expected.format(folder)
        if "/cache/" in found:  # the folder's name is a hash
            found = found.replace(found.split("/cache/")[1].split(":")[0], "*")
        assert found.removeprefix(f"{folder}/").startswith(wanted), found
        assert "\n" not in found
        reached |= _raised_at(caught.value)
    wanted_lines = {(module.__file__, line) for module in COVERED for line in _messages_of(module)}
    assert len(wanted_lines) > 40
    assert wanted_lines <= reached, wanted_lines - reached


def _messages_of(module: Any) -> list[range]:
    """The lines of each `raise UserError(…)`."""
    statements = ast.walk(ast.parse(Path(module.__file__).read_text()))
    return [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in statements
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name) and node.exc.func.id == "UserError"
    ]  # fmt: skip


def _raised_at(error: BaseException | None) -> set[tuple[str, range]]:
    """The messages it came through, also those that were put behind a file and row."""
    reached, seen = set(), []
    modules = {module.__file__: _messages_of(module) for module in COVERED}
    while error is not None and error not in seen:
        for frame, line in traceback.walk_tb(error.__traceback__):
            file = frame.f_code.co_filename
            reached |= {(file, lines) for lines in modules.get(file, ()) if line in lines}
        seen.append(error)
        error = error.__context__
    return reached
