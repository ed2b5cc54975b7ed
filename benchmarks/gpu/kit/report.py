"""What the rows gave: a line each as they come, and two files that are always whole."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from typing import Any

_GOOD = ("ok", "not here", "not reached")


class Report:
    """The records so far; each new one is printed and written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").unlink(missing_ok=True)  # of a run before
        self._folder, self._started = folder, time.monotonic()
        self._records: list[dict[str, Any]] = []

    @property
    def has_gpu(self) -> bool:
        return any(record.get("gpu") for record in self._records)

    def add(self, part: str, record: dict[str, Any]) -> None:
        """Print a record and write all of them again."""
        self._records.append({"part": part, **record})
        taken = time.monotonic() - self._started
        shown = f"{record['row']:<58} {record['status']:<11} {record.get('result', '')}"
        print(f"{taken:5.0f} s  {part:<12} {shown}".rstrip(), flush=True)
        self._write("results.json", json.dumps(self._records, indent=1) + "\n")
        self._write("results.md", _markdown(self._records))

    def finish(self) -> int:
        """Return the exit status: 1 where correctness or the machine has a row that went wrong."""
        bad = [record for record in self._records if record["status"] not in _GOOD]
        counts = collections.Counter(record["status"] for record in self._records)
        print(
            ", ".join(f"{count} {status}" for status, count in counts.items()),
            f"· {self._folder}/results.json",
        )
        return int(any(record["part"] in ("machine", "correctness", "sanitizer") for record in bad))

    def _write(self, name: str, text: str) -> None:
        part = self._folder / f"{name}.part"
        part.write_text(text)
        part.replace(self._folder / name)


def _markdown(records: list[dict[str, Any]]) -> str:
    machine = next((record for record in records if record["part"] == "machine"), {})
    lines = [f"# {machine.get('result', 'GPU kit')}", "", "| part | row | | |", "|---|---|---|---|"]
    for record in records:
        if record["part"] != "machine":
            result = str(record.get("result", "")).replace("|", "\\|")
            lines.append(f"| {record['part']} | {record['row']} | {record['status']} | {result} |")
    return "\n".join(lines) + "\n"
