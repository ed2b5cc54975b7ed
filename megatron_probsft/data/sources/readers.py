"""An item of --data is read: a file, a folder of `datasets`, or a data set of the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_probsft.data.sources.json_files import COMPRESSED, JsonFile, digest_of
from megatron_probsft.runtime.errors import UserError

if TYPE_CHECKING:  # it takes seconds to import: `_library` does, where an item needs it
    from datasets import Dataset, DatasetDict

_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+)(?=:))?(:(?P<split>[\w.-]+))?")


class Reader(Protocol):
    """A reader of one item of --data. All methods raise UserError, naming the item, if it cannot be read."""

    columnar: bool
    """Whether all rows have the same columns, null where a row says nothing."""

    def describe(self) -> str:
        """Say in words how the item holds its rows, if that is not the common way; else return ""."""
        ...

    def columns(self) -> dict[str, Any] | None:
        """Return the columns' names as keys, nested as in a row; None if there is no row."""
        ...

    def rows(self, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number from 1, row), with at least the columns that hold these names or dotted paths."""
        ...

    def count(self) -> int:
        """Return how many rows there are, blank lines counted."""
        ...

    def digest(self) -> str:
        """Return a hash of the content."""
        ...


def reader_of(item: str) -> Reader:
    """Return the reader of `file.jsonl`, `file.parquet`, `folder[:split]` or `owner/name[[:config]:split]`.

    A .jsonl or .json file holds an object per line or one JSON array, and may be compressed as .gz or .zst.
    A folder is one that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; a path that exists goes
    before a name on the hub. Nothing is read yet.

    Raises UserError: no such file, an empty one, or one of another extension.
    """
    path = Path(item)
    compressed = path.suffix if path.suffix in COMPRESSED else ""
    suffix = path.with_suffix("").suffix if compressed else path.suffix
    known = suffix in _READERS and not (compressed and _READERS[suffix] is _Parquet)
    if path.is_file():
        if not known:
            raise UserError(
                f"{item}: extension {suffix + compressed!r} is none of {', '.join(_READERS)}, .jsonl.gz, "
                ".jsonl.zst"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{item}: the file is empty")
        return _READERS[suffix](item)
    folder, _, split = item.rpartition(":")
    if path.is_dir():
        return _Folder(item, item, None)
    if folder and Path(folder).is_dir():
        return _Folder(item, folder, split)
    on_hub = _HUB.fullmatch(item)
    if known or not on_hub:
        raise UserError(f"{item}: no such data file or folder (of the hub: owner/name:config:split)")
    return _Hub(item, **on_hub.groupdict())


class _Parquet:
    columnar = True

    def __init__(self, file: str) -> None:
        self._file = file

    def describe(self) -> str:
        return ""

    def columns(self) -> dict[str, Any] | None:
        parquet = self._open()
        return _nested(parquet.schema_arrow) if parquet.metadata.num_rows else None

    def rows(self, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        parquet = self._open()
        columns = _columns_of(keys, parquet.schema_arrow.names)
        batches = parquet.iter_batches(batch_size=1000, columns=columns)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)

    def count(self) -> int:
        return self._open().metadata.num_rows

    def digest(self) -> str:
        return digest_of([self._file])

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self._file}: not a parquet file: {str(error).splitlines()[0]}") from None


_READERS: dict[str, type[JsonFile | _Parquet]] = {
    ".jsonl": JsonFile, ".json": JsonFile, ".parquet": _Parquet,
}  # fmt: skip


class _Arrow:
    """A reader of a dataset in Arrow files, which `_open` finds."""

    columnar = True

    def describe(self) -> str:
        return ""

    def columns(self) -> dict[str, Any] | None:
        dataset = self._open()
        return _nested(dataset.features.arrow_schema) if len(dataset) else None

    def rows(self, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        dataset = self._open()
        chosen: Any = dataset.select_columns(_columns_of(keys, dataset.column_names)).with_format("arrow")
        rows = (row for table in chosen.iter(batch_size=1000) for row in table.to_pylist())
        yield from enumerate(rows, start=1)

    def count(self) -> int:
        return len(self._open())

    def digest(self) -> str:
        return digest_of([file["filename"] for file in self._open().cache_files])

    def _open(self) -> Dataset:
        raise NotImplementedError


class _Folder(_Arrow):
    def __init__(self, item: str, folder: str, split: str | None) -> None:
        self._item, self._folder, self._split = item, folder, split

    def _open(self) -> Dataset:
        datasets = _library()
        try:
            found = datasets.load_from_disk(self._folder)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise UserError(
                f"{self._item}: not a whole folder of Dataset.save_to_disk (of others name the .parquet or "
                f".jsonl files): {str(error).splitlines()[0]}"
            ) from None
        if isinstance(found, datasets.DatasetDict):
            return _one_split(found, self._item, self._folder, self._split)
        if self._split is not None:
            raise UserError(f"{self._item}: {self._folder} has no splits, give it without :{self._split}")
        return found


class _Hub(_Arrow):
    def __init__(self, item: str, id: str, config: str | None, split: str | None) -> None:
        self._item, self._id, self._config, self._split = item, id, config, split

    def _open(self) -> Dataset:
        datasets = _library()
        errors = datasets.exceptions
        try:
            found = _load_from_hub(self._id, self._config, self._split)
        except ConnectionError as error:
            raise UserError(
                f"{self._item}: no such file or folder, and on the hub it cannot be reached: where there is "
                f"a network keep it with Dataset.save_to_disk and give that folder: {error}"
            ) from None
        except (
            errors.DatasetsError,
            FileNotFoundError,
            ValueError,
            RuntimeError,
        ) as error:  # names what there is
            reason = str(error.__cause__ if isinstance(error, errors.DatasetGenerationError) else error)
            reason = " ".join(reason.partition("Example of usage")[0].split()).rstrip(".")
            raise UserError(f"{self._item}: {reason} (spelled owner/name:config:split)") from None
        if isinstance(found, datasets.DatasetDict):
            base = self._item if self._config is None else f"{self._id}:{self._config}"
            return _one_split(found, self._item, base, self._split)
        return found


@lru_cache(maxsize=32)  # it asks the hub each time
def _load_from_hub(name: str, config: str | None, split: str | None) -> Any:
    return _library().load_dataset(name, config, split=split)


def _one_split(found: DatasetDict, item: str, base: str, split: str | None) -> Dataset:
    if split not in found:
        missing = "name a split" if split is None else f"has no split {split!r}"
        raise UserError(f"{item}: {missing}: {', '.join(f'{base}:{name}' for name in found)}")
    return found[split]


def _columns_of(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the columns that hold these names or dotted paths."""
    return list(dict.fromkeys(key if key in names else key.split(".")[0] for key in keys))


def _nested(fields: Any) -> dict[str, Any]:
    """Return a schema's names, nested as in one of its rows."""
    return {f.name: _nested(f.type) if pa.types.is_struct(f.type) else None for f in fields}


@lru_cache(maxsize=1)
def _library() -> Any:
    """Import `datasets`, late, and show its progress bars only where somebody sees them."""
    import datasets
    import datasets.exceptions

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
