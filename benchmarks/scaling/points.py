"""Tokens per second against GPUs, by the time model, with the layouts that it suggests. All estimated.

python -m benchmarks.scaling.draw
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling.models import MODELS
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.throughput.cards import CARDS
from megatron_probsft.training.throughput.show import changed_settings
from megatron_probsft.training.throughput.suggest_layout import (
    Job,
    Suggestion,
    suggest_layouts,
    suggestion_for,
)
from megatron_probsft.training.throughput.time_model import Machine
from megatron_probsft.training.throughput.workload import chat_samples, plan_workload

FILE = Path(__file__).parents[1] / "results" / "scaling_estimated.json"
CARD = "h100-80gb"
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
BATCHES = (256, 4096)
NAMES = ("Qwen2.5-1.5B", "Qwen2.5-7B", "Llama-3.1-70B")


@dataclass(frozen=True)
class Point:
    """The best layout for a model, a number of GPUs and a batch; None where none fits is left out."""

    model: str
    gpus: int
    samples: int
    settings: dict[str, Any]
    """Those of the layout and the packs that are not the default."""
    data_parallel_size: int
    micro_batches: int
    memory_gib: float
    seconds: float
    tokens_per_second: float
    parts: dict[str, float]
    """The seconds of each part of the step."""


def job_of(model: str, gpus: int, samples: int) -> Job:
    """Return the run that the page speaks of."""
    config = TrainConfig.of(seq_length=4096, global_batch_size=samples, train_iters=1)
    known = MODELS[model]
    lengths = chat_samples(config.batch)
    return Job(config, known.family, known.shape, lengths, "assumed", Machine(CARDS[CARD]), gpus)


def searched(model: str, gpus: int, samples: int) -> Point | None:
    """Return the first of the suggested layouts, if one fits."""
    found = suggest_layouts(job_of(model, gpus, samples), most=4)
    return _point(model, gpus, samples, found[0]) if found else None


def again(point: Point) -> Point:
    """Return the point with its layout timed anew."""
    job = job_of(point.model, point.gpus, point.samples)
    config = by_device(job.config.replace(**point.settings), None, point.gpus, gpu=True)
    workload = plan_workload(job.samples, config.batch, config.layout, point.data_parallel_size)
    return _point(point.model, point.gpus, point.samples, suggestion_for(job, config, workload))


def read_points() -> list[Point]:
    """Return the points that are committed."""
    return [Point(**record) for record in json.loads(FILE.read_text())]


def write_points() -> None:
    """Search all layouts anew; it takes a minute or two."""
    points = [searched(model, gpus, samples) for samples in BATCHES for model in NAMES for gpus in GPUS]
    records = [asdict(point) for point in points if point]
    FILE.write_text(json.dumps(records, indent=1) + "\n")


def _point(model: str, gpus: int, samples: int, found: Suggestion) -> Point:
    return Point(
        model=model,
        gpus=gpus,
        samples=samples,
        settings=changed_settings(found.config),
        data_parallel_size=found.data_parallel_size,
        micro_batches=found.micro_batches,
        memory_gib=round(found.memory_gib, 1),
        seconds=float(f"{found.time.total:.4g}"),
        tokens_per_second=float(f"{found.tokens_per_second:.4g}"),
        parts={name: float(f"{value:.3g}") for name, value in vars(found.time).items()},
    )
