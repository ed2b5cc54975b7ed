"""Training files to rows: JSON lines and parquet, pairs or conversations, checked row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from megatron_probsft.runtime.errors import UserError

_MISSING = object()
_SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_ORIGIN = {"source": Value("int32"), "row": Value("int64")}
_PAIRS = Features({"prompt": Value("large_string"), "response": Value("large_string"), **_ORIGIN})
_CONVERSATIONS = Features(
    {"messages": [{"role": Value("string"), "content": Value("large_string")}], **_ORIGIN}
)


def load_rows(
    files: Sequence[str],
    *,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str = "messages",
    cache_dir: str | None = None,
) -> Dataset:
    """Read the files, in the order given, into one memory-mapped dataset.

    A file with the prompt column gives pairs, else one with the messages column gives conversations; all
    files must be of one kind. A key is a column's name or, for nested data, a path: `extra_info.question`.

    Columns: `prompt`, `response` (non-empty) strings, or `messages`, a list of {role, content} strings; and
    always `source` int32, the index into `files`, and `row` int64, the line of the file (JSON lines) or the
    row (parquet), counted from 1. Blank lines are passed over.

    The dataset lies in `cache_dir` (default: that of `datasets`), named by the files' content.

    Raises UserError, naming file and row: missing, empty or unsupported file; both kinds at once; missing
    column; a line that is not a JSON object; a value of another type; an empty or null response.
    """
    check_files(files)
    keys = (prompt_key, response_key, messages_key)
    kinds = [_kind(file, *keys) for file in files]
    if len(set(kinds)) > 1:
        other = files[kinds.index("messages" if kinds[0] == "pairs" else "pairs")]
        raise UserError(f"{files[0]} holds {kinds[0]} but {other} does not: give files of one kind")
    content = ["v1", kinds[0], keys, [content_digest(file) for file in files]]
    try:
        rows = Dataset.from_generator(
            _pairs if kinds[0] == "pairs" else _conversations,
            features=_PAIRS if kinds[0] == "pairs" else _CONVERSATIONS,
            gen_kwargs={"files": list(files), "keys": keys},
            cache_dir=cache_dir,  # type: ignore[arg-type]
            fingerprint=hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest(),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    assert isinstance(rows, Dataset)
    return rows


def check_files(files: Sequence[str]) -> None:
    """UserError unless every file exists, is not empty and has an extension that can be read."""
    if not files:
        raise UserError("no data file given: name at least one .jsonl or .parquet file")
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such data file")
        if Path(file).suffix not in _SUFFIXES:
            raise UserError(f"{file}: extension {Path(file).suffix!r} is none of {', '.join(_SUFFIXES)}")
        if Path(file).stat().st_size == 0:
            raise UserError(f"{file}: the file is empty")


def content_digest(file: str) -> str:
    """Hash of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _pairs(files: list[str], keys: tuple[str, str, str]) -> Iterator[dict[str, Any]]:
    prompt_key, response_key, _ = keys
    for source, file in enumerate(files):
        for number, row in _read(file, (prompt_key, response_key)):
            where = f"{file}:{number}"
            response = _text(row, response_key, where)
            if not response:
                raise UserError(f"{where}: {response_key!r} is empty: every row needs a response")
            prompt = _text(row, prompt_key, where)
            yield {"prompt": prompt, "response": response, "source": source, "row": number}


def _conversations(files: list[str], keys: tuple[str, str, str]) -> Iterator[dict[str, Any]]:
    messages_key = keys[2]
    for source, file in enumerate(files):
        for number, row in _read(file, (messages_key,)):
            where = f"{file}:{number}"
            messages = _look_up(row, messages_key)
            if not isinstance(messages, list) or not messages:
                found = "an empty list" if messages == [] else _kind_of(messages)
                raise UserError(
                    f"{where}: {messages_key!r} is {found}, not a list of {{role, content}} objects"
                )
            messages = [_message(m, f"{where}: message {i}") for i, m in enumerate(messages, start=1)]
            yield {"messages": messages, "source": source, "row": number}


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f"{where} is {_kind_of(message)}, not an object with role and content")
    more = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if more:
        raise UserError(f"{where} has {more[0]!r}: only role and content are supported")
    return {key: _text(message, key, where) for key in ("role", "content")}


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


def _kind(file: str, prompt_key: str, response_key: str, messages_key: str) -> str:
    """What a file holds, `pairs` or `messages`, by its first row or its schema."""
    if _SUFFIXES[Path(file).suffix] == "parquet":
        parquet = _open_parquet(file)
        first = _columns(parquet.schema_arrow) if parquet.metadata.num_rows else None
    else:
        first = next((row for _, row in _read_json_lines(file)), None)
    if first is None:
        raise UserError(f"{file}: the file has no rows")
    if _look_up(first, prompt_key) is not _MISSING:
        kind, wanted, name = "pairs", response_key, repr(response_key)
    else:
        kind, wanted, name = "messages", messages_key, f"{prompt_key!r} nor {messages_key!r}"
    if _look_up(first, wanted) is _MISSING:
        raise UserError(
            f"{file}: has no column {name}; its columns are {', '.join(_names(first))}: "
            "name the right ones with --prompt-key, --response-key or --messages-key"
        )
    return kind


def _read(file: str, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a file; of parquet, only the columns that hold the keys."""
    if _SUFFIXES[Path(file).suffix] == "json":
        yield from _read_json_lines(file)
        return
    parquet = _open_parquet(file)
    names = parquet.schema_arrow.names
    columns = [key if key in names else key.split(".")[0] for key in keys]
    batches = parquet.iter_batches(batch_size=1000, columns=columns)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _read_json_lines(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{file}:{number}: not valid JSON, one object per line: {reason}") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: is {_kind_of(row)}, not a JSON object")
            yield number, row


def _open_parquet(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not a parquet file: {str(error).splitlines()[0]}") from None


def _columns(fields: Any) -> dict[str, Any]:
    """A schema's names, nested as in one of its rows."""
    return {f.name: _columns(f.type) if pa.types.is_struct(f.type) else None for f in fields}


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
