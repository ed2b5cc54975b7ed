"""Records of a run for machines: JSON lines, TensorBoard, and W&B where it is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.writer import SummaryWriter

from megatron_probsft.runtime.run_files.training import RECORDS
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.log.wandb_run import WandbRun


class Records:
    """`metrics.jsonl` and `tensorboard/` in the run folder, and a W&B run; one process writes."""

    def __init__(self, config: TrainConfig, first_iteration: int) -> None:
        """first_iteration: the step resumed, 0 for a new run. Raises UserError where W&B does not start."""
        folder = Path(config.checkpoint.save)
        self._wandb = WandbRun(config, folder) if config.logging.wandb_project else None
        self._json = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_iteration + 1)

    def write(self, kind: str, iteration: int, values: dict[str, Any]) -> None:
        """One record. Numbers that are not finite are null in JSON; those inside mappings are named a/b.

        `p_histogram`, shares of the `supervised_tokens` beside it in equal bins of [0, 1], becomes a/p.
        """
        record = RECORDS[kind].from_keys({"kind": kind, "iteration": iteration, **_finite(values)})
        self._json.write(json.dumps(record.to_json()) + "\n")
        numbers = _scalars(kind, values)
        for name, value in numbers.items():
            self._board.add_scalar(name, value, iteration)
        histograms = _histograms(kind, values)
        for name, counts in histograms.items():
            self._histogram(name, counts, iteration)
        if self._wandb is not None:
            self._wandb.log(iteration, numbers, histograms)

    def close(self, *, failed: bool) -> None:
        self._json.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def _histogram(self, name: str, counts: np.ndarray, iteration: int) -> None:
        edges = np.linspace(0, 1, len(counts) + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        self._board.add_histogram_raw(
            name,
            min=0.0,
            max=1.0,
            num=float(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=iteration,
        )


def _scalars(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers among the values, also inside mappings, by their path; no lists, no texts."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _scalars(f"{prefix}/{name}", value)
        elif isinstance(value, int | float):
            found[f"{prefix}/{name}"] = float(value)
    return found


def _histograms(prefix: str, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Counts of tokens by p, also inside mappings, by their path."""
    found = {f"{prefix}/p": np.asarray(values["p_histogram"]) * values["supervised_tokens"]}
    for name, part in values.get("sources", {}).items():
        found |= _histograms(f"{prefix}/sources/{name}", part)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
