"""The files that --data names, and the benchmarks in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.runtime.errors import UserError

_EXTENSIONS = (".jsonl", ".json", ".parquet")
_SPLITS = ("test", "validation", "train")


def rows_of(
    data: Sequence[str], hub: Mapping[str, str], task: str, wanted: Sequence[str] | None
) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Every row, as (name, index from 0, file and row, row).

    Args:
        data: files, and folders of them; the name is the file's, or its folder's for test.jsonl and the like.
        hub: what there is without `data`: item of `reader_of` by benchmark.
        wanted: the names to read, all unless given.

    Raises:
        UserError: no such file, one that cannot be read, the hub that cannot be reached, an unknown name.
    """
    items = [(_name_of(file), str(file)) for item in data for file in files_of(item)] or list(hub.items())
    names = [name for name, _ in items]
    for name in wanted or []:
        if name not in names:
            raise UserError(f"--benchmarks {name} is none of: {', '.join(names)}")
    for name, item in items:
        if not wanted or name in wanted:
            for index, (where, row) in enumerate(_rows(item, task, from_hub=not data)):
                yield name, index, where, row


def files_of(item: str) -> list[Path]:
    """The files that an item names: itself, or of a folder the first that there is of the following.

    They are its test.parquet, all its files, and the test.jsonl of each folder in it. UserError: none.
    """
    path = Path(item)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--data {item}: no such file or folder")
    if (path / "test.parquet").is_file():
        return [path / "test.parquet"]
    files = [file for file in sorted(path.iterdir()) if file.suffix in _EXTENSIONS and file.is_file()]
    files = [file for file in files if file.name != "card.json"] or sorted(path.glob("*/test.jsonl"))
    if not files:
        raise UserError(f"--data {item}: holds no {', '.join(_EXTENSIONS)} file")
    return files


def _name_of(file: Path) -> str:
    return file.absolute().parent.name if file.stem in _SPLITS else file.stem


def _rows(item: str, task: str, *, from_hub: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if not from_hub and (array := _json_array(Path(item))) is not None:
        for number, row in enumerate(array, start=1):
            if not isinstance(row, dict):
                raise UserError(f"{item} entry {number}: is of type {type(row).__name__}, not a JSON object")
            yield f"{item} entry {number}", row
        return
    reader = reader_of(item)
    try:
        columns = list(reader.columns() or {})
    except UserError as error:
        if from_hub:
            raise UserError(
                f"--task {task} without --data reads {item} from the hub: name local files with --data "
                f"({str(error).partition(': ')[2][:200]})"
            ) from None
        raise
    if not columns:
        raise UserError(f"{item} holds no rows")
    for number, row in reader.rows(columns):
        yield f"{item} row {number}", row


def _json_array(file: Path) -> list[Any] | None:
    """The entries of a .json file that is one list, or lists by source; None for any other file."""
    if file.suffix != ".json":
        return None
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return None  # one object a line
    if isinstance(content, dict) and content and all(isinstance(one, list) for one in content.values()):
        return [
            {"source": source, **row} if isinstance(row, dict) else row
            for source, rows in content.items()
            for row in rows
        ]
    return content if isinstance(content, list) else None
