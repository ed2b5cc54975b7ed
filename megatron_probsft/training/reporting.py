"""What the person watching sees, and what machines read: console lines, JSON lines, TensorBoard."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.tensorboard.writer import SummaryWriter

from megatron_probsft.runtime.distributed import rank
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config import TrainConfig
from megatron_probsft.training.guards import Spikes
from megatron_probsft.training.metrics import TokenMeans
from megatron_probsft.training.step import StepResult

T = TypeVar("T")


class Reporter:
    """Writes on rank 0 only; on the others every method does nothing."""

    def __init__(self, config: TrainConfig, train_iters: int, first_iteration: int) -> None:
        folder = Path(config.save)
        self._active = rank() == 0
        self._train_iters = train_iters
        self._first = first_iteration
        self._log_interval = config.log_interval
        self._started = self._last = time.perf_counter()
        self._tokens_since_last = 0
        self._skipped = 0
        self._spikes = Spikes(config.spike_factor)
        if self._active:
            self._json = (folder / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_iteration + 1)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._active:
            print(text, flush=True)

    def progress(self, title: str, items: Iterator[T], total: int) -> Iterator[T]:
        """Pass the items on; a line with the time left about every 5 s."""
        started = last = time.perf_counter()
        for done, item in enumerate(items):
            now = time.perf_counter()
            if done and now - last > 5:
                last = now
                eta = datetime.timedelta(seconds=round((now - started) / done * (total - done)))
                self.say(f"{title}: {done}/{total} | ETA {eta}")
            yield item

    def step(self, iteration: int, result: StepResult, batch: StepBatch) -> None:
        """One optimizer step: console every log_interval, JSON and TensorBoard always."""
        if not self._active:
            return
        now = time.perf_counter()
        self._tokens_since_last += result.means.tokens
        values = {
            "loss": result.means.loss,
            "nll": result.means.nll,
            "mean_p": result.means.mean_p,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
        }
        self._skipped += result.skipped is not None
        spikes = self._spikes.found({name: values[name] for name in ("loss", "grad_norm")})
        below, above = result.means.share_below(0.1), result.means.share_above(0.55)
        self._record("train", iteration, values | {
            "supervised_tokens": result.means.tokens, "p_below_0.1": below, "p_above_0.55": above,
            "micro_batches": len(batch.micro_batches), "pack_length": batch.pack_length,
            "packing_efficiency": batch.efficiency, "skipped_steps": self._skipped,
            "seconds_since_start": now - self._started, "spike": [*spikes],
        })  # fmt: skip
        for name, median in spikes.items():
            self.say(f"step {iteration}: spike of {name}, {values[name]:.4g}; median so far {median:.4g}")
        if result.skipped:
            self.say(
                f"step {iteration} skipped ({self._skipped} so far): its {result.skipped} is not finite; "
                "weights, optimizer and schedule stay as they were"
            )
        if iteration % self._log_interval and iteration != self._train_iters:
            return
        speed = self._tokens_since_last / max(now - self._last, 1e-9)
        self._board.add_scalar("train/supervised_tokens_per_second", speed, iteration)
        per_step = (now - self._started) / (iteration - self._first)
        eta = datetime.timedelta(seconds=round(per_step * (self._train_iters - iteration)))
        self.say(
            f"step {iteration:>{len(str(self._train_iters))}}/{self._train_iters}"
            f" | loss {values['loss']:.4f} | nll {values['nll']:.4f} | mean p {values['mean_p']:.3f}"
            f" | grad-norm {values['grad_norm']:.3f} | lr {values['learning_rate']:.2e}"
            f" | {speed:,.0f} supervised tokens/s | ETA {eta}"
        )
        self._last, self._tokens_since_last = now, 0

    def validation(self, iteration: int, means: TokenMeans, seconds: float) -> None:
        """One pass over the validation data."""
        if not self._active:
            return
        self.say(
            f"validation at step {iteration} | loss {means.loss:.4f} | nll {means.nll:.4f}"
            f" | mean p {means.mean_p:.3f} | {means.tokens:,} supervised tokens in {seconds:.1f} s"
        )
        values = {"loss": means.loss, "nll": means.nll, "mean_p": means.mean_p}
        self._record("validation", iteration, values | {
            "supervised_tokens": means.tokens, "seconds": seconds, "p_histogram": means.histogram,
        })  # fmt: skip

    def close(self) -> None:
        if self._active:
            self._json.close()
            self._board.close()

    def _record(self, kind: str, iteration: int, values: dict[str, Any]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._json.write(json.dumps({"kind": kind, "iteration": iteration, **finite}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{kind}/{name}", value, iteration)
