"""A process that generates with vLLM: started, followed, ended. Several may run side by side."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_probsft.evaluation.engines.engine import Seconds
from megatron_probsft.runtime.errors import UserError

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # the model is a folder
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",  # the modules beside vllm_process.py are none of vLLM's
}
_SIGNALS = {-signal.SIGKILL: "killed, perhaps for want of memory", -signal.SIGTERM: "terminated"}
MAX_ERROR = 300  # characters
_ERROR = re.compile(r"\b((?:[A-Z]\w*)?(?:Error|Exception|Interrupt)): (.*\S)")


class Child:
    """One process of `vllm_process`, which reports in JSON lines while it generates."""

    def __init__(
        self,
        request: dict[str, Any],
        folder: Path,
        log: Path,
        devices: str | None,
        receive: Callable[[dict[str, Any]], None],
    ) -> None:
        """Start it.

        Args:
            request: what it generates, as `vllm_process` reads it.
            folder: an empty folder for what is passed in and out.
            log: the file for all that vLLM prints.
            devices: its CUDA_VISIBLE_DEVICES; None leaves it the environment's.
            receive: is called with each report.

        Raises:
            UserError: PROBSFT_VLLM_PYTHON names no interpreter.
        """
        python = os.environ.get("PROBSFT_VLLM_PYTHON") or sys.executable
        if shutil.which(python) is None:
            raise UserError(f"PROBSFT_VLLM_PYTHON={python} is not an executable interpreter")
        request_file, self._response = folder / "request.json", folder / "response.json"
        request_file.write_text(json.dumps(request))
        self._log, self._receive, self._rest = log, receive, b""
        own = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
        self.stream, writer = os.pipe()
        try:
            with log.open("wb") as log_file:
                self._process = subprocess.Popen(
                    [python, str(Path(__file__).with_name("vllm_process.py")),
                     str(request_file), str(self._response), str(writer)],
                    env=_ENVIRONMENT | os.environ | own, stdin=subprocess.DEVNULL, stdout=log_file,
                    stderr=subprocess.STDOUT, pass_fds=[writer], start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(writer)

    def has_ended(self) -> bool:
        """Return whether the process is over; what it wrote last may not be read yet."""
        return self._process.poll() is not None

    def read(self) -> bool:
        """Pass on what it has reported; returns False once nothing more will come."""
        received = os.read(self.stream, 1 << 20)
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            self._receive(json.loads(line))
        return bool(received)

    def outcome(self) -> Seconds:
        """Return the time that it took, once it has ended; raises UserError with its last error and log."""
        status = self._process.wait()
        if not self._response.exists():
            what = _last_error(self._log) or "no error in its log"
            raise UserError(
                f"vLLM ended with status {status}, {_SIGNALS.get(status, what)} (log: {self._log})"
            )
        response = json.loads(self._response.read_text())
        if "error" in response:
            error = " ".join(response["error"].split())
            if "root cause" in error:  # of a process that vLLM started
                error = _last_error(self._log) or error
            raise UserError(f"vLLM: {error[:MAX_ERROR]} (log: {self._log})")
        return Seconds(response["startup_seconds"], response["generation_seconds"])

    def kill(self) -> None:
        """End it, and the engine and workers that vLLM started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self.stream)


def follow(children: Sequence[Child], wait: Callable[[], None]) -> Seconds:
    """Read all children until they have ended; returns the longest times.

    wait: is called whenever nothing was reported for half a second.

    Raises:
        UserError: one of them failed; it is raised as soon as that one has ended.
    """
    times: list[Seconds] = []
    running = list(children)
    unread = {child.stream: child for child in children}
    while running:
        # A process whose stream is closed is about to end.
        readable = select.select(list(unread), [], [], 0.5 if len(unread) == len(running) else 0.05)[0]
        for stream in readable:
            if not unread[stream].read():
                del unread[stream]
        if not readable:
            wait()
        # A worker left behind may keep a stream open, but has nothing to say.
        over = [
            child for child in running
            if (child.stream not in unread or not readable) and child.has_ended()
        ]  # fmt: skip
        for child in over:
            times.append(child.outcome())
            running.remove(child)
            unread.pop(child.stream, None)
    return Seconds(max(one.startup for one in times), max(one.generation for one in times))


def _last_error(log: Path) -> str | None:
    """The last error in the log that names a cause, on one line; None if there is none."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [match for line in lines if (match := _ERROR.search(line)) and "root cause" not in line]
    return f"{errors[-1][1]}: {errors[-1][2]}" if errors else None
