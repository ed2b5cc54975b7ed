"""Runs a part's rows in child processes: a crash, a hang or a missing library costs one row."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.parts import Part

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 120
"""Time for a child's imports."""
NOT_REACHED = "not reached"
"""The status of a row that the time for all rows had no room for: nothing is known of it."""
SLOWER = 5
"""So many times longer may everything take on a CPU, which others may use too."""


def run_rows(part: Part, options: dict[str, Any], deadline: float) -> Iterator[dict[str, Any]]:
    """Yield what came of each row of a part, as soon as it is known.

    A child runs the rows in turn; where it ends or is stopped in one, another child runs the rest.

    Args:
        options: `small`, `output` of a `Place`, and `text`, which the rows' names must have.
        deadline: on the monotonic clock; the row that runs then is stopped, and is "not reached" as those
            after it are.
    """
    waiting: list[str] | None = None
    while waiting is None or waiting:
        if time.monotonic() >= deadline:
            yield from ({"row": row, "status": NOT_REACHED} for row in waiting or [f"all of {part.name}"])
            return
        running, done = None, 0
        for message in _messages(part, options | {"rows": waiting, "apart": part.apart}, deadline):
            if "rows" in message:
                waiting = message["rows"] if waiting is None else waiting
                if not waiting:
                    yield {
                        "row": options["text"],
                        "status": "failed",
                        "result": "no row has this in its name",
                    }
            elif "started" in message:
                running = message["started"]
            elif "row" in message:
                assert waiting is not None
                waiting.remove(message["row"])
                running, done = None, done + 1
                yield message
            elif waiting is None:
                status = message["status"] if message["status"] == NOT_REACHED else "failed"
                yield {"row": f"all of {part.name}", "status": status, "result": message["ended"]}
                return
            elif waiting and (running or not done):
                lost = running or waiting[0]
                waiting.remove(lost)
                yield {"row": lost, "status": message["status"], "result": message["ended"]}


def _messages(part: Part, options: dict[str, Any], deadline: float) -> Iterator[dict[str, Any]]:
    """Yield the messages of one child, and at last how it ended."""
    log = Path(options["output"]) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.kit.child", part.module, json.dumps(options)]
    with log.open("a") as errors:
        errors.write(f"=== {part.name}\n")
        errors.flush()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, cwd=ROOT,
            env=_environment(options["small"]),
        )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    slower = SLOWER if options["small"] else 1
    limit: float = START_SECONDS * slower
    try:
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            try:
                line = lines.get(timeout=min(limit, left))
            except queue.Empty:
                if left <= limit:
                    yield {"status": NOT_REACHED, "ended": f"the time for all was up, {left:.0f} s into it"}
                else:
                    yield {"status": "timed out", "ended": f"stopped after {limit:.0f} s"}
                return
            if line is None:
                status = process.wait()
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                yield {"status": "crashed" if status else "failed", "ended": f"{how}, see {log.name}"}
                return
            yield json.loads(line)
            limit = part.row_seconds * slower
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the programs that a row has started
        process.wait()
        reader.join(timeout=10)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _environment(small: bool) -> dict[str, str]:
    environment = os.environ | {
        "PYTHONPATH": _path(),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if small:
        return environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # One card, one process: nothing needs a network, and machines without one have no other interface.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return {"NCCL_SOCKET_IFNAME": "lo"} | environment | {"CUDA_VISIBLE_DEVICES": first}


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
