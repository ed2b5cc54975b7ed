"""JSON files are read as rows: an object per line or one array of them, as they are or compressed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from megatron_probsft.runtime.errors import UserError


class JsonFile:
    """A `Reader` of one JSON file."""

    columnar = False

    def __init__(self, file: str) -> None:
        self._file = file

    def describe(self) -> str:
        packed = "packed, " * (Path(self._file).suffix in COMPRESSED)
        return f"{packed}one JSON array" if self._array is not None else packed + "JSON lines" * bool(packed)

    def columns(self) -> dict[str, Any] | None:
        return next((row for _, row in self.rows(())), None)

    def rows(self, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield rows with the number of their line, or of their item in an array; blank lines are skipped."""
        for number, row in self._items():
            if not isinstance(row, dict):
                raise UserError(f"{self._file}:{number}: is of type {type(row).__name__}, not a JSON object")
            yield number, row

    def count(self) -> int:
        if self._array is not None:
            return sum(1 for _ in self._items())
        with self._stream() as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))

    def digest(self) -> str:
        return digest_of([self._file])

    def _items(self) -> Iterator[tuple[int, Any]]:
        array = self._array
        if array is not None:
            yield from enumerate(array, start=1)
            return
        with self._stream() as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, self._parsed(line, f"{self._file}:{number}", "one object per line")

    @cached_property
    def _array(self) -> list[Any] | None:
        """The file's rows, if it is one array, and nothing but that array is in it; else None."""
        with self._stream() as stream:
            start = stream.read(1 << 10).lstrip(b"\xef\xbb\xbf \t\r\n")
            if not start.startswith(b"["):
                return None
        with self._stream() as stream:
            first = stream.readline()
            rest = stream.read()
        if rest.strip():
            with contextlib.suppress(ValueError):
                json.loads(first)
                return None  # one value per line, if the wrong one
        return self._parsed(first + rest, self._file, "an array of objects")

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Any]:
        try:
            with COMPRESSED.get(Path(self._file).suffix, _open_plain)(self._file) as stream:
                yield stream
        except (EOFError, zlib.error, OSError) as error:
            if Path(self._file).suffix not in COMPRESSED:
                raise
            raise UserError(f"{self._file}: damaged, it cannot be unpacked: {error}") from None

    @staticmethod
    def _parsed(text: bytes, where: str, wanted: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON, {wanted}: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise UserError(f"{where}: not valid JSON, {wanted}: it is nested too deeply") from None


def _open_plain(file: str) -> Any:
    return open(file, "rb")


def _open_zstd(file: str) -> Any:
    return io.BufferedReader(pa.input_stream(file, compression="zstd"))  # type: ignore[arg-type]


COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".zst": _open_zstd}


def digest_of(files: Sequence[str]) -> str:
    """Return a hash of the files' bytes."""
    total = hashlib.blake2b(digest_size=16)
    for file in files:
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()
