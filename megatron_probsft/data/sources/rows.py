"""Training data are read as rows, pairs or conversations, from files, folders and the hub, and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from megatron_probsft.data.sources.columns import Columns, find_columns, look_up
from megatron_probsft.data.sources.messages import check_unicode, kind_of, normalised, text_of
from megatron_probsft.data.sources.readers import Reader, reader_of
from megatron_probsft.runtime.errors import UserError

_LARGEST_WEIGHT = 1e18  # so that the product of two is finite in float32
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "strftime_now")


def read_rows(
    files: Sequence[str],
    *,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str = "messages",
    weight_key: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the files (or what else `reader_of` reads), in the order given.

    A file with the prompt column gives pairs, else one with the messages column gives conversations; all
    files must be of one kind. A key is a column's name or, for nested data, a path: `extra_info.question`.
    Where the keys are the default ones and their columns are missing, ShareGPT's `conversations` are
    conversations, and Alpaca's `instruction`, `input`, `output` are pairs, whose prompt is the instruction
    and, on the next line, the input; `log` is told.

    A row holds `prompt`, `response` (non-empty) strings, or `messages`, a list of what `normalised` gives;
    and always `source`, the index into `files`, and `row`, the line of the file (JSON lines) or the row
    (parquet, a JSON array), counted from 1. Blank lines are passed over. Where the row has them, a pair also
    holds `system`, and both hold `tools`, a list of objects, and `chat_template_kwargs`, an object; a
    conversation's `system` becomes its first message. `weights` is one number for each response (each
    assistant message), exact in float32: the row's at `weight_key` times the message's own `weight`; None
    where all are 1.

    Raises UserError, naming file and row. At once: what `reader_of` and its readers refuse; no rows; both
    kinds; missing column. While it is read: a line that is not a JSON object; a value of another type; an
    empty or null response; a weight that is negative or not finite; a row whose weights are all 0.
    """
    check_files(files)
    keys = (prompt_key, response_key, messages_key, weight_key)
    readers = [reader_of(file) for file in files]
    columns = [find_columns(file, reader, keys) for file, reader in zip(files, readers, strict=True)]
    kinds = [one.kind for one in columns]
    if len(set(kinds)) > 1:
        other = files[kinds.index("messages" if kinds[0] == "pairs" else "pairs")]
        raise UserError(f"{files[0]} holds {kinds[0]} but {other} does not: give files of one kind")
    for file, reader, one in zip(files, readers, columns, strict=True):
        if said := "; ".join(filter(None, (reader.describe(), one.known_as))):
            log(f"{file}: {said}")
    return _all_rows(files, readers, columns)


def check_files(files: Sequence[str]) -> None:
    """Raise UserError unless every item is a readable file, a folder, or may be a data set of the hub."""
    if not files:
        raise UserError("no data file given: name at least one .jsonl or .parquet file")
    for file in files:
        reader_of(file)


def _all_rows(
    files: Sequence[str], readers: Sequence[Reader], columns: Sequence[Columns]
) -> Iterator[dict[str, Any]]:
    for source, (file, reader, one) in enumerate(zip(files, readers, columns, strict=True)):
        keys = (*one.texts, one.input, one.history, one.weight, *one.extras)
        for number, row in reader.rows([key for key in keys if key is not None]):
            where = f"{file}:{number}"
            extras = _extras(row, one.extras, where, reader.columnar)
            content = (_pair if one.kind == "pairs" else _conversation)(row, one, extras, where)
            yield {**content, "source": source, "row": number}


def _pair(row: dict[str, Any], columns: Columns, extras: dict[str, Any], where: str) -> dict[str, Any]:
    prompt_key, response_key = columns.texts
    response = text_of(look_up(row, response_key), response_key, where)
    if not response:
        raise UserError(f"{where}: {response_key!r} is empty: every row needs a response")
    prompt = text_of(look_up(row, prompt_key), prompt_key, where)
    if columns.input is not None and (more := row.get(columns.input)):
        prompt += "\n" + text_of(more, columns.input, where)
    if columns.history is not None and row.get(columns.history):
        raise UserError(f"{where}: 'history' holds earlier turns: write them as messages")
    weights = _weights(row, columns.weight, [1.0], where)
    return {"prompt": prompt, "response": response, "weights": weights, **extras}


def _conversation(
    row: dict[str, Any], columns: Columns, extras: dict[str, Any], where: str
) -> dict[str, Any]:
    [messages_key] = columns.texts
    found = look_up(row, messages_key)
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else kind_of(found)
        raise UserError(f"{where}: {messages_key!r} is {kind}, not a list of {{role, content}} objects")
    messages, turns = [], []
    for index, raw in enumerate(found, start=1):
        message = normalised(raw, f"{where}: message {index}")
        weight = _message_weight(message, f"{where}: message {index}")
        messages.append({key: value for key, value in message.items() if key != "weight"})
        if message["role"] == "assistant":
            turns.append(weight)
    if (system := extras.pop("system", None)) is not None:
        if messages[0]["role"] == "system" and messages[0]["content"] != system:
            raise UserError(f"{where}: 'system' is another text than the system message: keep one of them")
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "weights": _weights(row, columns.weight, turns, where), **extras}


def _extras(row: dict[str, Any], names: Sequence[str], where: str, columnar: bool) -> dict[str, Any]:
    """Return the extra columns that say something."""
    found: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and name != "system" and value.strip():
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UserError(f"{where}: {name!r} is a string that is no JSON: {error}") from None
        value = _without_nulls(value) if columnar else value
        if value is None or value in ("", [], {}):
            continue
        if name == "system":
            text_of(value, name, where)
        elif name == "tools" and not (
            isinstance(value, list) and all(isinstance(one, dict) for one in value)
        ):
            raise UserError(f"{where}: 'tools' is {kind_of(value)}, not a list of objects")
        elif name == "chat_template_kwargs":
            if not isinstance(value, dict):
                raise UserError(f"{where}: 'chat_template_kwargs' is {kind_of(value)}, not an object")
            if taken := [key for key in value if key in _RESERVED]:
                raise UserError(f"{where}: 'chat_template_kwargs' cannot set {taken[0]!r}")
        check_unicode(value, f"{where}: {name!r}")
        found[name] = value
    return found


def _without_nulls(value: Any) -> Any:
    """Drop nulls: where columns have one type for all rows, a field that only other rows have is null."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _message_weight(message: dict[str, Any], where: str) -> float:
    weight = 1.0 if message.get("weight") is None else _number(message, "weight", where)
    if message["role"] != "assistant" and message.get("weight"):
        raise UserError(f"{where} has a weight, but only an assistant message is trained")
    return weight


def _weights(
    row: dict[str, Any], weight_key: str | None, turns: list[float], where: str
) -> list[float] | None:
    """Return the row's weight times each of its turns' own; None if all are 1."""
    of_row = 1.0 if weight_key is None else _number(row, weight_key, where)
    if of_row == 1 and all(turn == 1 for turn in turns):
        return None
    weights = np.float32(of_row) * np.asarray(turns, np.float32)
    if turns and not weights.any():
        raise UserError(f"{where}: all its weights are 0, so nothing in it is trained: leave the row out")
    return None if (weights == 1).all() else weights.tolist()


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = look_up(row, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {key!r} is {kind_of(value)}, not a number")
    if not 0 <= value <= _LARGEST_WEIGHT:  # NaN is not
        raise UserError(f"{where}: {key!r} is {value}: a weight is from 0 to {_LARGEST_WEIGHT:g}")
    return float(value)
