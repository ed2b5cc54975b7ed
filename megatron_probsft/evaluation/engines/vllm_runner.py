"""Generate with vLLM in a process of its own: token ids in, token ids out, on CPU and CUDA alike.

vLLM initialises torch.distributed, seeds the global generators and may need another interpreter than the
trainer (in NGC containers it has an environment of its own): `PROBSFT_VLLM_PYTHON` names it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts, Listener, Seconds
from megatron_probsft.evaluation.engines.generation_progress import GenerationProgress
from megatron_probsft.evaluation.request import Generation, Request
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


@dataclass(frozen=True)
class VllmRunner:
    """An `Engine` that runs vLLM in a process of its own.

    Attributes:
        model: a Hugging Face folder.
        log: a file for all that vLLM prints; progress goes to the terminal, one line every 5 s if it is none.
        kv_bytes_per_token: sizes the KV cache on CPU; see `kv_bytes_per_token`.
        max_model_len: what the longest prompt and its generation take, unless given.
    """

    model: Path
    log: Path
    kv_bytes_per_token: int
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None

    def generate(self, requests: Sequence[Request], decoding: Decoding, listener: Listener) -> Seconds:
        """See `Engine`. Raises UserError: vLLM failed, with its last error and the log's path."""
        groups = [list(group) for _, group in itertools.groupby(requests, key=lambda one: one.key[:2])]
        reports = _Reports(groups, listener)
        with tempfile.TemporaryDirectory(prefix="probsft-vllm-") as folder:
            request_file, response_file = Path(folder, "request.json"), Path(folder, "response.json")
            request_file.write_text(json.dumps(self._asked(groups, decoding)))
            status = _run_process(request_file, response_file, self.log, reports)
            if not response_file.exists():
                what = _last_error(self.log) or "no error in its log"
                raise UserError(
                    f"vLLM ended with status {status}, {_SIGNALS.get(status, what)} (log: {self.log})"
                )
            response = json.loads(response_file.read_text())
        if "error" in response:
            error = " ".join(response["error"].split())
            if "root cause" in error:  # of a process that vLLM started
                error = _last_error(self.log) or error
            raise UserError(f"vLLM: {error[:MAX_ERROR]} (log: {self.log})")
        return Seconds(response["startup_seconds"], response["generation_seconds"])

    def _asked(self, groups: list[list[Request]], decoding: Decoding) -> dict[str, Any]:
        """The request that `vllm_process` reads: each prompt once, with the seeds of its samples."""
        firsts = [group[0] for group in groups]
        return {
            "model": str(self.model.resolve()), "prompts": [one.prompt for one in firsts],
            "seeds": [[one.seed for one in group] for group in groups],
            "max_new_tokens": [one.max_new_tokens for one in firsts],
            "stop_token_ids": list(decoding.stop_token_ids), "temperature": decoding.temperature,
            "dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_model_len
            or max(len(one.prompt) + one.max_new_tokens for one in firsts),
            "kv_bytes_per_token": self.kv_bytes_per_token,
        }  # fmt: skip


def kv_bytes_per_token(config: Any) -> int:
    """The bytes that the keys and values of a token take in all layers, in float32.

    config: a Hugging Face text model's.
    """
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * groups * head_dim * 4


def _run_process(request: Path, response: Path, log: Path, reports: _Reports) -> int:
    python = os.environ.get("PROBSFT_VLLM_PYTHON") or sys.executable
    if shutil.which(python) is None:
        raise UserError(f"PROBSFT_VLLM_PYTHON={python} is not an executable interpreter")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream, log.open("wb") as log_file:
        try:
            process = subprocess.Popen(
                [python, str(Path(__file__).with_name("vllm_process.py")),
                 str(request), str(response), str(writer)],
                env=_ENVIRONMENT | os.environ, stdin=subprocess.DEVNULL, stdout=log_file,
                stderr=subprocess.STDOUT, pass_fds=[writer], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writer)
        try:
            return _follow(process, stream.fileno(), reports)
        finally:  # also the engine and workers that vLLM started, and on Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _follow(process: subprocess.Popen[bytes], stream: int, reports: _Reports) -> int:
    """Pass on what the process reports until it ends; returns its exit status."""
    ended = False
    while True:
        if select.select([stream], [], [], 0.0 if ended else 0.5)[0]:
            received = os.read(stream, 1 << 20)
            if received:
                reports.receive(received)
                continue
            process.wait()  # closed: the process is about to end
        elif not ended:
            reports.waiting()
        if ended or process.poll() is not None:
            if ended:
                reports.close()
                return process.wait()
            ended = True  # read what it wrote before that; a worker left behind may keep the pipe open


class _Reports:
    """The lines that the process writes, and from them the progress shown."""

    def __init__(self, groups: list[list[Request]], listener: Listener) -> None:
        """groups: the requests by prompt, which the process counts as they stand here."""
        self._groups, self._listener = groups, listener
        longest = max(group[0].max_new_tokens for group in groups)
        self._progress = GenerationProgress(sum(map(len, groups)), longest)
        self._rest, self._begin, self._ready = b"", time.monotonic(), False

    def receive(self, received: bytes) -> None:
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "finished" in report:
                prompt, sample, tokens, reason = report["finished"]
                self._listener.finished(self._groups[prompt][sample], Generation(tokens, reason))
            elif "progress" in report:
                self._progress.show(*report["progress"])
            else:
                self._ready = True
                self._progress.start()
                self._listener.started(EngineFacts(**report["engine"]))

    def waiting(self) -> None:
        if not self._ready:
            self._progress.say(f"vLLM: starting, {time.monotonic() - self._begin:.0f} s")

    def close(self) -> None:
        self._progress.close()


def _last_error(log: Path) -> str | None:
    """The last error in the log that names a cause, on one line; None if there is none."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [match for line in lines if (match := _ERROR.search(line)) and "root cause" not in line]
    return f"{errors[-1][1]}: {errors[-1][2]}" if errors else None
