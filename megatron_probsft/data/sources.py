"""Training data to rows: files, folders, data sets of the hub; pairs or conversations, each row checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from megatron_probsft.data.readers import reader_of
from megatron_probsft.runtime.errors import UserError

_LARGEST_WEIGHT = 1e18  # so that the product of two is finite in float32
_Keys = tuple[str, str, str, str | None]  # of prompt, response, messages, weight
_MISSING = object()


def read_rows(
    files: Sequence[str],
    *,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str = "messages",
    weight_key: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of the files (or what else `reader_of` reads), in the order given.

    A file with the prompt column gives pairs, else one with the messages column gives conversations; all
    files must be of one kind. A key is a column's name or, for nested data, a path: `extra_info.question`.

    A row holds `prompt`, `response` (non-empty) strings, or `messages`, a list of {role, content} strings;
    and always `source`, the index into `files`, and `row`, the line of the file (JSON lines) or the row
    (parquet), counted from 1. Blank lines are passed over. `weights` is one number for each response (each
    assistant message), exact in float32: the row's at `weight_key` times the message's own `weight`; None
    where all are 1.

    Raises UserError, naming file and row. At once: what `reader_of` and its readers refuse; no rows; both
    kinds; missing column. While it is read: a line that is not a JSON object; a value of another type; an
    empty or null response; a weight that is negative or not finite; a row whose weights are all 0.
    """
    check_files(files)
    keys = (prompt_key, response_key, messages_key, weight_key)
    kinds = [_kind(file, keys) for file in files]
    if len(set(kinds)) > 1:
        other = files[kinds.index("messages" if kinds[0] == "pairs" else "pairs")]
        raise UserError(f"{files[0]} holds {kinds[0]} but {other} does not: give files of one kind")
    return _pairs(files, keys) if kinds[0] == "pairs" else _conversations(files, keys)


def check_files(files: Sequence[str]) -> None:
    """UserError unless every item is a readable file, a folder, or may be a data set of the hub."""
    if not files:
        raise UserError("no data file given: name at least one .jsonl or .parquet file")
    for file in files:
        reader_of(file)


def _pairs(files: Sequence[str], keys: _Keys) -> Iterator[dict[str, Any]]:
    prompt_key, response_key, _, weight_key = keys
    for source, file in enumerate(files):
        for number, row in _rows(file, prompt_key, response_key, weight_key):
            where = f"{file}:{number}"
            response = _text(row, response_key, where)
            if not response:
                raise UserError(f"{where}: {response_key!r} is empty: every row needs a response")
            prompt = _text(row, prompt_key, where)
            weights = _weights(row, weight_key, [1.0], where)
            yield {
                "prompt": prompt, "response": response, "weights": weights, "source": source, "row": number,
            }  # fmt: skip


def _conversations(files: Sequence[str], keys: _Keys) -> Iterator[dict[str, Any]]:
    _, _, messages_key, weight_key = keys
    for source, file in enumerate(files):
        for number, row in _rows(file, messages_key, weight_key):
            where = f"{file}:{number}"
            found = _look_up(row, messages_key)
            if not isinstance(found, list) or not found:
                kind = "an empty list" if found == [] else _kind_of(found)
                raise UserError(
                    f"{where}: {messages_key!r} is {kind}, not a list of {{role, content}} objects"
                )
            messages, turns = [], []
            for index, message in enumerate(found, start=1):
                messages.append(_message(message, f"{where}: message {index}"))
                weight = _message_weight(message, f"{where}: message {index}")
                if messages[-1]["role"] == "assistant":
                    turns.append(weight)
            weights = _weights(row, weight_key, turns, where)
            yield {"messages": messages, "weights": weights, "source": source, "row": number}


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f"{where} is {_kind_of(message)}, not an object with role and content")
    known = ("role", "content", "weight")
    more = [key for key, value in message.items() if key not in known and value is not None]
    if more:
        raise UserError(f"{where} has {more[0]!r}: only role, content and weight are supported")
    return {key: _text(message, key, where) for key in ("role", "content")}


def _message_weight(message: dict[str, Any], where: str) -> float:
    weight = 1.0 if message.get("weight") is None else _number(message, "weight", where)
    if message["role"] != "assistant" and message.get("weight"):
        raise UserError(f"{where} has a weight, but only an assistant message is trained")
    return weight


def _weights(
    row: dict[str, Any], weight_key: str | None, turns: list[float], where: str
) -> list[float] | None:
    """The row's weight times each of its turns' own, None if all are 1."""
    of_row = 1.0 if weight_key is None else _number(row, weight_key, where)
    if of_row == 1 and all(turn == 1 for turn in turns):
        return None
    weights = np.float32(of_row) * np.asarray(turns, np.float32)
    if turns and not weights.any():
        raise UserError(f"{where}: all its weights are 0, so nothing in it is trained: leave the row out")
    return None if (weights == 1).all() else weights.tolist()


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = _look_up(row, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {key!r} is {_kind_of(value)}, not a number")
    if not 0 <= value <= _LARGEST_WEIGHT:  # NaN is not
        raise UserError(f"{where}: {key!r} is {value}: a weight is from 0 to {_LARGEST_WEIGHT:g}")
    return float(value)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = _look_up(row, key)
    if not isinstance(value, str):
        hint = " (conversations go into a messages column)" if isinstance(value, list) else ""
        raise UserError(f"{where}: {key!r} is {_kind_of(value)}, not a string{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {key!r} is not valid Unicode: {error.reason}") from None
    return value


def _kind(file: str, keys: _Keys) -> str:
    """What a file holds, `pairs` or `messages`, by its first row or its schema."""
    prompt_key, response_key, messages_key, weight_key = keys
    first = reader_of(file).columns()
    if first is None:
        raise UserError(f"{file}: there are no rows")
    if _look_up(first, prompt_key) is not _MISSING:
        kind, wanted, name = "pairs", response_key, repr(response_key)
    else:
        kind, wanted, name = "messages", messages_key, f"{prompt_key!r} nor {messages_key!r}"
    columns = ", ".join(_names(first))
    if _look_up(first, wanted) is _MISSING:
        raise UserError(
            f"{file}: has no column {name}; its columns are {columns}: "
            "name the right ones with --prompt-key, --response-key or --messages-key"
        )
    if weight_key is not None and _look_up(first, weight_key) is _MISSING:
        raise UserError(f"{file}: has no column {weight_key!r} of --weight-key; its columns are {columns}")
    return kind


def _rows(file: str, *keys: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    return reader_of(file).rows([key for key in keys if key is not None])


def _names(row: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in row.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


def _look_up(row: dict[str, Any], key: str) -> Any:
    """The value at a name or a dotted path; `_MISSING` where there is none."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _kind_of(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    return "null" if value is None else f"of type {type(value).__name__}"
