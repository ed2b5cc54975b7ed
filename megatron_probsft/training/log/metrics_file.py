"""`metrics.jsonl`: one line per record, none twice, however often a run was killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.schema import check_version


def drop_records_after(folder: Path, iteration: int) -> None:
    """Forget what a killed run recorded after the checkpoint that is now resumed, and a line cut in half.

    At iteration 0 nothing stays: the run starts anew. Raises UserError: a newer version wrote a record.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return
    kept = [line for line, record in _whole_records(file) if float(record["iteration"]) <= iteration]
    write_whole(file, "".join(kept if iteration else []))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Every whole record of the run so far; none where there is no file.

    Raises UserError: a newer version wrote one.
    """
    file = folder / "metrics.jsonl"
    return [record for _, record in _whole_records(file)] if file.is_file() else []


def _whole_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) pairs, without what is no record: a full disk, or a kill, may leave anything."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
            is_whole = line.endswith("\n") and float(record["iteration"]) < float("inf")
        except (ValueError, TypeError, KeyError):
            continue
        if is_whole:
            check_version(record, str(file))
            yield line, record
