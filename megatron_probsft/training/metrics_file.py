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
    kept = [line for line in file.read_text().splitlines(keepends=True) if _iteration_of(line) <= iteration]
    write_whole(file, "".join(kept if iteration else []))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Every whole record of the run so far; none where there is no file."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if _iteration_of(line) < float("inf")]


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"] if line.endswith("\n") else float("inf")
    except ValueError:
        return float("inf")
