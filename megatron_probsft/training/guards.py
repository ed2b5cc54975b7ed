"""Guards that keep a bad batch from ruining the weights, and notice what went wrong nevertheless."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import check_param_hashes_across_dp_replicas

from megatron_probsft.checkpoint.megatron.run_folder import newest_step
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.log import GuardSettings
from megatron_probsft.training.state import TrainState
from megatron_probsft.training.step import StepResult

_WINDOW, _FEWEST = 50, 20
_LEAST_SIGMA = 0.05
_NAMED = 3


def save_batch(run_folder: Path, iteration: int, batch: StepBatch) -> str:
    """Write the step's micro-batches for inspection, a file per data-parallel rank; return their pattern.

    `torch.load` gives a list of dictionaries of tensors: tokens, labels, cu_seqlens, …
    """
    pattern = f"skipped_step_{iteration:07d}_data_rank_*.pt"
    first_of_its_replica = (
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_first_stage()
    )
    if first_of_its_replica:
        rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        content = [dataclasses.asdict(micro_batch) for micro_batch in batch.micro_batches]
        torch.save(content, run_folder / pattern.replace("*", str(rank)))
    return str(run_folder / pattern)


class Spikes:
    """Flags values far above their recent history: an individuals (XmR) control chart's upper limit.

    A value is a spike above median + factor · σ of the last 50 values, σ = 1.048 × the median of their
    absolute differences from one to the next: neither a trend nor a few spikes in the history widen it much.
    From 20 values on; σ counts as 5 % of the median at least, or a smooth curve's every kink would be one.
    (Wheeler and Chambers 1992, "Understanding Statistical Process Control"; their factor is 3 for steady
    processes, gradient norms have heavier tails.)
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._history: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))

    def found(self, values: dict[str, float]) -> dict[str, float]:
        """Take a step's values by name, and return the medians of those that are spikes; not NaN and inf."""
        medians = {}
        for name, value in values.items():
            history = self._history[name]
            if not math.isfinite(value):
                continue
            if len(history) >= _FEWEST:
                median = statistics.median(history)
                sigma = 1.048 * statistics.median(abs(new - old) for old, new in pairwise(history))
                if value > median + self._factor * max(sigma, _LEAST_SIGMA * abs(median)):
                    medians[name] = median
            history.append(value)
        return medians


def replica_differences(chunks: list[torch.nn.Module]) -> list[str]:
    """Return a line per parameter whose SHA-1 hash differs between the data-parallel ranks.

    Megatron-Core's check, which copies all weights to the CPU and names the parameters that differ from the
    group's first rank. The list is the same on every rank, empty if all is well. Collectives: one all-gather
    of hashes per data-parallel group, and one of the lines over the world.
    """
    with _messages_of("megatron.core.utils") as lines:
        equal = check_param_hashes_across_dp_replicas(chunks, cross_check=True)
    found: list[tuple[bool, list[str]]] = [(True, [])] * dist.get_world_size()
    dist.all_gather_object(found, (equal, lines))
    if all(fine for fine, _ in found):
        return []
    return [line for _, of_rank in found for line in of_rank]


class StepGuard:
    """Stops a run after a step that should be its last: too many were skipped, or replicas differ."""

    def __init__(
        self, settings: GuardSettings, run_folder: Path, iteration: int, say: Callable[[str], None]
    ) -> None:
        """iteration: the step that is resumed, 0 for a new run."""
        self._settings, self._folder, self._say = settings, run_folder, say
        self._skipped_in_a_row, self._equal_until = 0, iteration

    def check(self, state: TrainState, result: StepResult, batch: StepBatch) -> None:
        """Look at the step that was just done. Collectives: those of `replica_differences`, in some steps.

        Raises:
            UserError: names the step, and the file of its batch or the parameters that differ.
        """
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.skipped else 0
        if self._skipped_in_a_row >= self._settings.max_skipped_steps:
            file = save_batch(self._folder, state.iteration, batch)
            raise UserError(
                f"{result.skipped} not finite in step {state.iteration}, the {self._skipped_in_a_row}. in a "
                f"row (--max-skipped-steps): its batch is in {file}; the weights are as before these steps"
            )
        interval = self._settings.check_weight_hash_across_dp_replicas_interval
        if interval is not None and state.iteration % interval == 0:
            self._check_replicas(state)

    def _check_replicas(self, state: TrainState) -> None:
        state.gather_weights()
        lines = replica_differences([*state.gpt])
        if lines:
            more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
            newest = newest_step(self._folder)
            checkpoint = f"the newest checkpoint is of step {newest}"
            raise UserError(
                f"weights differ between data-parallel replicas after step {state.iteration}, were equal "
                f"after step {self._equal_until}: {'; '.join(lines[:_NAMED])}{more}; "
                f"{'there is no checkpoint yet' if newest is None else checkpoint}"
            )
        self._equal_until = state.iteration
        replicas = parallel_state.get_data_parallel_world_size()
        self._say(f"step {self._equal_until}: all {replicas} data-parallel replicas hold the same weights")


@contextlib.contextmanager
def _messages_of(logger_name: str) -> Iterator[list[str]]:
    """Collect what a logger says, at whatever level it is set, instead of showing it."""
    logger, lines = logging.getLogger(logger_name), []
    level, propagate = logger.level, logger.propagate

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collector()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
