"""What machines read of a run: JSON lines and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.writer import SummaryWriter

HISTOGRAM = "p_histogram"


class Records:
    """`metrics.jsonl` and `tensorboard/` in the run folder; one process writes."""

    def __init__(self, folder: Path, first_iteration: int) -> None:
        """first_iteration: the step that is resumed, 0 for a new run."""
        self._json = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_iteration + 1)

    def write(self, kind: str, iteration: int, values: dict[str, Any]) -> None:
        """One record. Numbers that are not finite are null in JSON; those inside mappings are named a/b.

        `p_histogram`, shares of `supervised_tokens` in equal bins of [0, 1], becomes a histogram.
        """
        self._json.write(json.dumps({"kind": kind, "iteration": iteration, **_finite(values)}) + "\n")
        for name, value in scalars(kind, values).items():
            self._board.add_scalar(name, value, iteration)
        if HISTOGRAM in values:
            self._histogram(f"{kind}/p", values[HISTOGRAM], values["supervised_tokens"], iteration)

    def close(self) -> None:
        self._json.close()
        self._board.close()

    def _histogram(self, name: str, shares: list[float], tokens: int, iteration: int) -> None:
        edges = np.linspace(0, 1, len(shares) + 1)
        counts, middles = np.asarray(shares) * tokens, (edges[:-1] + edges[1:]) / 2
        self._board.add_histogram_raw(
            name,
            min=0.0,
            max=1.0,
            num=tokens,
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=iteration,
        )


def scalars(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers among the values, also inside mappings, by their path; no lists, no texts."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= scalars(f"{prefix}/{name}", value)
        elif isinstance(value, int | float):
            found[f"{prefix}/{name}"] = float(value)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
