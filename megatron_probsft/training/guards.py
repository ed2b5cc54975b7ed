"""What keeps a bad batch from ruining the weights, and notices what went wrong nevertheless."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import check_param_hashes_across_dp_replicas

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import StepBatch

_WINDOW, _FEWEST = 50, 20
_LEAST_SIGMA = 0.05
_NAMED = 3


def save_batch(run_folder: Path, iteration: int, batch: StepBatch) -> str:
    """Write the step's micro-batches for inspection, a file per data-parallel rank; returns their pattern.

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
        """Take a step's values, by name; returns the medians of those that are spikes. NaN, inf: left out."""
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
    """Compare SHA-1 hashes of the weights over the data-parallel ranks: a line per parameter that differs.

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


def check_replicas(chunks: list[torch.nn.Module], iteration: int, equal_until: int, advice: str) -> None:
    """Stop where data-parallel ranks no longer hold the same weights. Collectives: `replica_differences`'s.

    Raises:
        UserError: names ranks and parameters, the last step at which all were equal, and `advice`.
    """
    lines = replica_differences(chunks)
    if lines:
        more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        raise UserError(
            f"weights differ between data-parallel replicas after step {iteration}, were equal after step "
            f"{equal_until}: {'; '.join(lines[:_NAMED])}{more}; {advice}"
        )


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
