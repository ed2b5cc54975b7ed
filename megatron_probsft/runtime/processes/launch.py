"""A process knows its place by what torchrun, or another launcher, puts into the environment."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def launched_rank() -> int:
    """Return the global rank; 0 without a launcher, or where what it says is no number."""
    return _number("RANK", 0)


def launched_world_size() -> int:
    """Return the number of processes; 1 without a launcher, or where what it says is no number."""
    return _number("WORLD_SIZE", 1)


def launched_local_rank() -> int:
    """Return the number of this process among those of its machine; 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def hosts_store() -> bool:
    """Return whether the store of this run ends with this process: rank 0's, unless torchrun hosts it."""
    return launched_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def leave_for_torchrun(line: str) -> bool:
    """Leave a line for torchrun's report on a failure; False if there is none, or no room for it.

    As torch's `record` does, without torch. A line break sets the line apart in the report.
    """
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not report:
        return False
    message = {"message": f"\n{line}", "extraInfo": {"timestamp": str(int(time.time()))}}
    try:
        Path(report).write_text(json.dumps({"message": message}), encoding="utf-8")
    except OSError:
        return False
    return True


def _number(name: str, otherwise: int) -> int:
    # What is no number is told by `check_environment`; telling it needs the rank.
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise
