"""vLLM's side of `vllm_runner`: token ids in, token ids out.

Run by file path, `python vllm_process.py REQUEST.json RESPONSE.json FD`, with an interpreter that may know
vLLM and the standard library only. Writes JSON lines to the descriptor: {"engine": what it is} once it runs,
{"finished": [prompt, sample, tokens, finish_reason]} and {"progress": [finished, their tokens, all tokens]};
when nobody reads them any more, it ends. When vLLM fails the response is {"error": what}.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

MIN_KV_BYTES = 64 << 20
MAX_CONCURRENCY = 256
CPU_BLOCK = 128  # tokens per block of vLLM's KV cache on CPU


class Reports:
    """The lines that the parent reads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._stream, self._last = os.fdopen(descriptor, "w"), 0.0

    def write(self, **report: Any) -> None:
        self._stream.write(json.dumps(report) + "\n")
        self._stream.flush()

    def progress(self, *counts: int) -> None:
        """Report how far it is, at most five times a second."""
        if time.monotonic() - self._last > 0.2:
            self._last = time.monotonic()
            self.write(progress=counts)


def run(request: dict[str, Any], reports: Reports) -> dict[str, Any]:
    """Generate everything; returns the response, which says how long it took, or what stops it."""
    started = time.perf_counter()
    from vllm import platforms

    settings: dict[str, Any] = {}
    if platforms.current_platform.device_type == "cpu":
        if shutil.which("lscpu") is None:
            return {"error": "vLLM on CPU calls lscpu, which is not on PATH: install util-linux"}
        settings = _settings_of_cpu(request)

    import vllm

    llm = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        tensor_parallel_size=request["tensor_parallel_size"],
        max_model_len=request["max_model_len"],
        max_num_seqs=MAX_CONCURRENCY,
        seed=0,  # the default; every request brings its own
        skip_tokenizer_init=True,
        **settings,
    )
    ready = time.perf_counter()
    reports.write(
        engine={
            "dtype": str(llm.model_config.dtype).removeprefix("torch."),
            "device": platforms.current_platform.get_device_name(),
            "vllm": vllm.__version__,
        }
    )
    _add_requests(llm.llm_engine, request)
    _finish_all(llm.llm_engine, reports)
    return {"startup_seconds": ready - started, "generation_seconds": time.perf_counter() - ready}


def _settings_of_cpu(request: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, and environment variables that are set before it is imported."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # no C++ compiler needed
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": _kv_bytes(request),
        # vLLM 0.32 takes back a seeded sample of a chunk before the last, which CPU generators cannot do
        "enable_chunked_prefill": False,
    }


def _add_requests(engine: Any, request: dict[str, Any]) -> None:
    """Give the engine all samples of all prompts, each under the name PROMPT/SAMPLE."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    wanted = zip(request["prompts"], request["seeds"], request["max_new_tokens"], strict=True)
    for index, (prompt, seeds, most) in enumerate(wanted):
        for sample, seed in enumerate(seeds):
            sampling = vllm.SamplingParams(
                temperature=request["temperature"],
                max_tokens=most,
                stop_token_ids=request["stop_token_ids"],
                seed=seed,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            tokens_prompt: Any = {"type": "token", "prompt_token_ids": prompt}
            engine.add_request(f"{index}/{sample}", tokens_prompt, sampling)


def _finish_all(engine: Any, reports: Reports) -> None:
    """Compute until nothing is left, and report each generation as soon as it is complete."""
    generated: defaultdict[str, list[int]] = defaultdict(list)
    finished = finished_tokens = tokens = 0
    while engine.has_unfinished_requests():
        outputs: list[Any] = engine.step()
        for output in outputs:
            new = output.outputs[0]
            generated[output.request_id] += new.token_ids
            tokens += len(new.token_ids)
            if output.finished:
                whole = generated.pop(output.request_id)
                index, sample = map(int, output.request_id.split("/"))
                reports.write(finished=[index, sample, whole, new.finish_reason])
                finished += 1
                finished_tokens += len(whole)
        reports.progress(finished, finished_tokens, tokens)


def _kv_bytes(request: dict[str, Any]) -> int:
    """The size of the KV cache: room for all requests at once, within half of the free memory, or for one."""
    blocks = -(-request["max_model_len"] // CPU_BLOCK) + 1
    one = blocks * CPU_BLOCK * request["kv_bytes_per_token"]
    wanted = one * min(sum(map(len, request["seeds"])), MAX_CONCURRENCY)
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    return max(MIN_KV_BYTES, one, min(wanted, available // 2))


def main() -> None:
    """Read the request, run it, and write the response."""
    try:
        response = run(json.loads(Path(sys.argv[1]).read_text()), Reports(int(sys.argv[3])))
    except Exception as error:
        traceback.print_exc()
        response = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(response))


if __name__ == "__main__":
    main()
