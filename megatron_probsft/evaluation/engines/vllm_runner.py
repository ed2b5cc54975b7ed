"""Generate with vLLM in a process of its own: token ids in, token ids out, on CPU and CUDA alike.

vLLM initialises torch.distributed, seeds the global generators and may need another interpreter than the
trainer (in NGC containers it has an environment of its own): `PROBSFT_VLLM_PYTHON` names it.
"""

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
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.evaluation.engines.generation_progress import GenerationProgress
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
class Generation:
    """Tokens, with the one that ended it if finish_reason is "stop"; "length": cut after the most."""

    tokens: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Engine:
    """What generates."""

    dtype: str
    device: str
    vllm: str


@dataclass(frozen=True)
class Seconds:
    startup: float
    generation: float


Finished = Callable[[int, int, Generation], None]  # (prompt, sample of it, what was generated)


def generate(
    model_dir: Path,
    prompts: Sequence[list[int]],
    seeds: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int],
    stop_token_ids: Sequence[int],
    log: Path,
    finished: Finished,
    started: Callable[[Engine], None],
    temperature: float = 0.0,
    dtype: str = "auto",
    tensor_parallel_size: int = 1,
    max_model_len: int | None = None,
    kv_bytes_per_token: int,
) -> Seconds:
    """One generation for each seed of each prompt: greedy at temperature 0, else a function of its seed.

    Args:
        seeds: per prompt, one seed for each sample wanted.
        max_new_tokens: per prompt.
        log: file for all that vLLM prints; progress goes to the terminal, one line every 5 s if it is none.
        finished: called with each generation as soon as it is complete, in the order of completion.
        started: called once, when the engine is ready.
        max_model_len: what the longest prompt and its generation take, unless given.
        kv_bytes_per_token: sizes the KV cache on CPU; see `kv_bytes_per_token`.

    Raises:
        UserError: vLLM failed, with its last error and the log's path.
    """
    request = {
        "model": str(model_dir.resolve()), "prompts": list(prompts), "seeds": [list(s) for s in seeds],
        "max_new_tokens": list(max_new_tokens), "stop_token_ids": list(stop_token_ids),
        "temperature": temperature, "dtype": dtype, "tensor_parallel_size": tensor_parallel_size,
        "max_model_len": max_model_len
        or max(len(prompt) + most for prompt, most in zip(prompts, max_new_tokens, strict=True)),
        "kv_bytes_per_token": kv_bytes_per_token,
    }  # fmt: skip
    reports = _Reports(sum(map(len, seeds)), max(max_new_tokens), finished, started)
    with tempfile.TemporaryDirectory(prefix="probsft-vllm-") as folder:
        request_file, response_file = Path(folder, "request.json"), Path(folder, "response.json")
        request_file.write_text(json.dumps(request))
        status = _run_process(request_file, response_file, log, reports)
        if not response_file.exists():
            what = _last_error(log) or "no error in its log"
            raise UserError(f"vLLM ended with status {status}, {_SIGNALS.get(status, what)} (log: {log})")
        response = json.loads(response_file.read_text())
    if "error" in response:
        error = " ".join(response["error"].split())
        if "root cause" in error:  # of a process that vLLM started
            error = _last_error(log) or error
        raise UserError(f"vLLM: {error[:MAX_ERROR]} (log: {log})")
    return Seconds(response["startup_seconds"], response["generation_seconds"])


def kv_bytes_per_token(config: Any) -> int:
    """Keys and values of one token in all layers, in float32; of a Hugging Face text model's config."""
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
    """Pass on what the process reports until it ends; its exit status."""
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

    def __init__(
        self, total: int, max_new_tokens: int, finished: Finished, started: Callable[[Engine], None]
    ) -> None:
        self._finished, self._started = finished, started
        self._progress = GenerationProgress(total, max_new_tokens)
        self._rest, self._begin, self._ready = b"", time.monotonic(), False

    def receive(self, received: bytes) -> None:
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "finished" in report:
                prompt, sample, tokens, reason = report["finished"]
                self._finished(prompt, sample, Generation(tokens, reason))
            elif "progress" in report:
                self._progress.show(*report["progress"])
            else:
                self._ready = True
                self._progress.start()
                self._started(Engine(**report["engine"]))

    def waiting(self) -> None:
        if not self._ready:
            self._progress.say(f"vLLM: starting, {time.monotonic() - self._begin:.0f} s")

    def close(self) -> None:
        self._progress.close()


def _last_error(log: Path) -> str | None:
    """The last error that names a cause, on one line."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [match for line in lines if (match := _ERROR.search(line)) and "root cause" not in line]
    return f"{errors[-1][1]}: {errors[-1][2]}" if errors else None
