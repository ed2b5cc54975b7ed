"""Generate with vLLM in processes of its own: token ids in, token ids out, on CPU and CUDA alike.

vLLM initialises torch.distributed, seeds the global generators and may need another interpreter than the
trainer (in NGC containers it has an environment of its own): `PROBSFT_VLLM_PYTHON` names it.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.evaluation.engines.child import Child, follow
from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts, Listener, Seconds
from megatron_probsft.evaluation.engines.generation_progress import GenerationProgress
from megatron_probsft.evaluation.request import Generation, Request


@dataclass(frozen=True)
class VllmRunner:
    """An `Engine` that runs vLLM in processes of its own, each with its share of the prompts.

    Attributes:
        model: a Hugging Face folder.
        log: a file for all that vLLM prints; progress goes to the terminal, one line every 5 s if it is none.
            Of several processes each has its own: vllm.log, vllm-1.log, …
        kv_bytes_per_token: sizes the KV cache on CPU; see `kv_bytes_per_token`.
        max_model_len: what the longest prompt and its generation take, unless given.
        devices: for each process its CUDA_VISIBLE_DEVICES, such as "2,3"; None leaves it the environment's.
    """

    model: Path
    log: Path
    kv_bytes_per_token: int
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    devices: Sequence[str | None] = (None,)

    def generate(self, requests: Sequence[Request], decoding: Decoding, listener: Listener) -> Seconds:
        """See `Engine`. Raises UserError: vLLM failed, with its last error and the log's path."""
        groups = [list(group) for _, group in itertools.groupby(requests, key=lambda one: one.key[:2])]
        # Neighbours are alike in length: dealt out like cards, the shares are so too.
        shares = [groups[place :: len(self.devices)] for place in range(min(len(self.devices), len(groups)))]
        reports = _Reports(groups, listener)
        with tempfile.TemporaryDirectory(prefix="probsft-vllm-") as folder, contextlib.ExitStack() as ended:
            children = []
            for place, (share, devices) in enumerate(zip(shares, self.devices, strict=False)):
                own = Path(folder, str(place))
                own.mkdir()
                log = self.log.with_stem(f"{self.log.stem}-{place}") if place else self.log
                child = Child(self._asked(share, decoding), own, log, devices, reports.of(share))
                ended.callback(child.kill)  # on Ctrl-C, too
                children.append(child)
            ended.callback(reports.close)
            return follow(children, reports.waiting)

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


class _Reports:
    """The lines that the processes write, and from them the progress shown."""

    def __init__(self, groups: list[list[Request]], listener: Listener) -> None:
        self._listener = listener
        longest = max(group[0].max_new_tokens for group in groups)
        self._progress = GenerationProgress(sum(map(len, groups)), longest)
        self._begin, self._ready = time.monotonic(), False
        self._counts: list[list[int]] = []

    def of(self, share: list[list[Request]]) -> Any:
        """Return what receives the reports of a process; share: its requests by prompt, as it counts them."""
        place = len(self._counts)
        self._counts.append([0, 0, 0])

        def receive(report: dict[str, Any]) -> None:
            if "finished" in report:
                prompt, sample, tokens, reason = report["finished"]
                self._listener.finished(share[prompt][sample], Generation(tokens, reason))
            elif "progress" in report:
                self._counts[place] = report["progress"]
                self._progress.show(*map(sum, zip(*self._counts, strict=True)))
            elif not self._ready:
                self._ready = True
                self._progress.start()
                self._listener.started(EngineFacts(**report["engine"]))

        return receive

    def waiting(self) -> None:
        if not self._ready:
            self._progress.say(f"vLLM: starting, {time.monotonic() - self._begin:.0f} s")

    def close(self) -> None:
        self._progress.close()
