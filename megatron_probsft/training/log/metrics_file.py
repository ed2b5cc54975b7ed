"""`metrics.jsonl`: one line per record, none twice, however often a run was killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.folders import write_whole


def drop_records_after(folder: Path, iteration: int) -> None:
    """Forget what a killed run recorded after the checkpoint that is now resumed, and a line cut in half.

    At iteration 0 nothing stays: the run starts anew.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return
    kept = [line for line in _lines(file) if _iteration_of(line) <= iteration]
    write_whole(file, "".join(kept if iteration else []))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Every whole record of the run so far; none where there is no file."""
    file = folder / "metrics.jsonl"
    lines = _lines(file) if file.is_file() else []
    return [json.loads(line) for line in lines if _iteration_of(line) < float("inf")]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _iteration_of(line: str) -> float:
    """Infinite of what is no whole record: a disk that was full, or a kill, may leave anything."""
    try:
        return float(json.loads(line)["iteration"]) if line.endswith("\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")
