"""The reports of a run while it goes on: one record per step and per validation, and lines about them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron_probsft.checkpoint.megatron.run_folder import checkpoint_folder, newest_step
from megatron_probsft.models.family import ModelShape
from megatron_probsft.probing.probe import Reading
from megatron_probsft.runtime.device import device_name, peak_memory_bytes
from megatron_probsft.runtime.distributed import largest, rank, world_size
from megatron_probsft.runtime.run_files.training import TrainingSummary
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.guards import Spikes
from megatron_probsft.training.log.console import Console, eta
from megatron_probsft.training.log.flops import model_flops, peak_tflops
from megatron_probsft.training.log.metrics_file import read_records
from megatron_probsft.training.log.records import Records
from megatron_probsft.training.log.summary import summarize, table
from megatron_probsft.training.log.timing import Phases
from megatron_probsft.training.step import StepResult
from megatron_probsft.vocab_parallel.token_means import TokenMeans, combine

T = TypeVar("T")


class Reporter:
    """Writes on rank 0 only; on the others every method does nothing. Enter it, so that it closes."""

    def __init__(
        self, config: TrainConfig, shape: ModelShape, train_iters: int, first_iteration: int
    ) -> None:
        """first_iteration: the step that is resumed, 0 for a new run."""
        self.phases = Phases()
        self._active = rank() == 0
        self._console = Console(active=self._active)
        self._shape, self._train_iters, self._first = shape, train_iters, first_iteration
        self._log_interval = config.logging.log_interval
        self._started = time.perf_counter()
        self._tokens_since_line, self._seconds_since_line = 0, 0.0
        self._spikes = Spikes(config.guards.spike_factor)
        self._peak = peak_tflops(device_name()) if config.precision.bf16 else None
        self._skipped = 0
        self._folder = Path(config.checkpoint.save)
        if self._active:
            before = [record for record in read_records(self._folder) if record["kind"] == "train"]
            self._skipped = before[-1]["skipped_steps"] if before else 0
            self._records = Records(config, first_iteration)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._console.close()
        if self._active:
            self._records.close(failed=error is not None)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._console.say(text)

    def probe(self, readings: list[Reading]) -> None:
        """Show what a probe before the first step found, and write `probe.json` and `probe.png`."""
        from megatron_probsft.probing import report as probe_report  # with matplotlib, as below

        if self._active:
            self._console.show(probe_report.table(readings))
            probe_report.write(readings, self._folder)

    def progress(self, title: str, items: Iterator[T], total: int) -> Iterator[T]:
        """Pass the items on and show how many are done."""
        return self._console.progress(title, items, total)

    def step(self, iteration: int, result: StepResult, batch: StepBatch) -> None:
        """Report one optimizer step: on the console every log_interval, in the records always."""
        if not self._active:
            return
        self.phases.add(result.seconds)
        seconds = self.phases.take()
        step_seconds = sum(seconds.values()) - seconds["validation"] - seconds["checkpoint"]
        self._skipped += result.skipped is not None
        main = _means(result.means) | {"grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
        spikes = self._spikes.found({name: main[name] for name in ("loss", "grad_norm")})
        since_start = time.perf_counter() - self._started
        left = since_start / (iteration - self._first) * (self._train_iters - iteration)
        values = main | {
            **_shares(result.means),
            "samples": batch.samples, "tokens": int(batch.lengths.sum()),
            "supervised_tokens": result.means.tokens,
            "micro_batches": len(batch.micro_batches), "pack_length": batch.pack_length,
            "packing_efficiency": batch.efficiency,
            "tokens_per_second": float(batch.lengths.sum()) / step_seconds,
            "supervised_tokens_per_second": result.means.tokens / step_seconds,
            **self._speed(batch, result.means.tokens, step_seconds),
            "peak_memory_gib": peak_memory_bytes() / 2**30,
            "skipped_steps": self._skipped, "spike": [*spikes],
            "seconds": seconds, "seconds_since_start": since_start, "eta_seconds": left,
        }  # fmt: skip
        self._records.write("train", iteration, values)
        if result.skipped:
            self.say(
                f"step {iteration} skipped ({self._skipped} so far): its {result.skipped} is not finite; "
                "weights, optimizer and schedule stay as they were"
            )
        for name, median in spikes.items():
            self.say(f"step {iteration}: spike of {name}, {main[name]:.4g}; median so far {median:.4g}")
        self._tokens_since_line += result.means.tokens
        self._seconds_since_line += step_seconds
        self._show_step(iteration, values)

    def validation(self, iteration: int, by_source: Mapping[str, TokenMeans], seconds: float) -> None:
        """Report one pass over the validation data: its disjoint sources together, and one by one."""
        if not self._active:
            return
        means = combine([*by_source.values()])
        self.say(
            f"validation at step {iteration} | {_line(_means(means))}"
            f" | {means.tokens:,} supervised tokens in {seconds:.1f} s"
        )
        values: dict[str, Any] = _of_pass(means) | {"seconds": seconds}
        if len(by_source) > 1:
            values["sources"] = {name: _of_pass(part) for name, part in by_source.items()}
            for name, part in by_source.items():
                self.say(f"  {name} | {_line(_means(part))} | {part.tokens:,} supervised tokens")
        self._records.write("validation", iteration, values)

    def finish(self, status: str) -> None:
        """Report the end, reached or not: `summary.json` and `curves.png` in the run folder, and a table.

        Collective: one all-reduce of the peak memory over the world.
        """
        peak = largest(peak_memory_bytes())
        records = read_records(self._folder) if self._active else []
        if not records:
            return
        newest = newest_step(self._folder)
        content = {
            "status": status,
            **summarize(records, self.phases.take()),
            "peak_memory_gib": peak / 2**30,
            "checkpoint": None if newest is None else str(checkpoint_folder(self._folder, newest)),
        }
        summary = TrainingSummary.from_keys(content).to_json()
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        from megatron_probsft.training.log.curves import plot_curves  # matplotlib takes a second: only here

        plot_curves(records, self._folder / "curves.png")
        self._console.close()
        self._console.show(table(content))

    def _speed(self, batch: StepBatch, supervised_tokens: int, seconds: float) -> dict[str, float]:
        """Return model TFLOP/s per process, and its share of the device's peak where that is known."""
        flops = model_flops(self._shape, batch.lengths, supervised_tokens)
        tflops = flops / seconds / world_size() / 1e12
        return {"model_tflops_per_device": tflops} | ({"mfu": tflops / self._peak} if self._peak else {})

    def _show_step(self, iteration: int, values: dict[str, Any]) -> None:
        means, left = _line(values), eta(values["eta_seconds"])
        rate = f"{values['supervised_tokens_per_second']:,.0f} supervised tokens/s"
        self._console.step(iteration, self._train_iters, f"{means} | {rate} | ETA {left}")
        if iteration % self._log_interval and iteration != self._train_iters:
            return
        rate = f"{self._tokens_since_line / self._seconds_since_line:,.0f} supervised tokens/s"
        mfu = f" | MFU {values['mfu']:.1%}" if "mfu" in values else ""
        self.say(
            f"step {iteration:>{len(str(self._train_iters))}}/{self._train_iters} | {means}"
            f" | grad-norm {values['grad_norm']:.3f} | lr {values['learning_rate']:.2e}"
            f" | {rate}{mfu} | ETA {left}"
        )
        self._tokens_since_line, self._seconds_since_line = 0, 0.0


def _means(means: TokenMeans) -> dict[str, float]:
    values = {"loss": means.loss, "nll": means.nll, "mean_p": means.mean_p}
    return values if means.entropy is None else values | {"entropy": means.entropy}


def _shares(means: TokenMeans) -> dict[str, Any]:
    """Return how the tokens are spread over p."""
    return {
        "p_below_0.1": means.share_below(0.1),
        "p_above_0.55": means.share_above(0.55),
        "p_histogram": means.histogram,
    }


def _of_pass(means: TokenMeans) -> dict[str, Any]:
    return {**_means(means), **_shares(means), "supervised_tokens": means.tokens}


def _line(values: Mapping[str, float]) -> str:
    entropy = f" | entropy {values['entropy']:.3f}" if "entropy" in values else ""
    return f"loss {values['loss']:.4f} | nll {values['nll']:.4f} | mean p {values['mean_p']:.3f}{entropy}"
