"""Small training runs for tests: data, configuration, and what a run reported."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from megatron_probsft.training import loop
from megatron_probsft.training.config.arguments import check
from megatron_probsft.training.config.config import TrainConfig
from tests.support.ranks import run_ranks

WORDS = ["what", "is", "the", "sum", "of", "one", "and", "two", "it", "three", "user", "7", "41", "?"]


def write_pairs(file: Path, count: int, seed: int = 0) -> Path:
    """Prompts and responses of very different lengths."""
    generator = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))

    rows = [{"prompt": text(12), "response": text(9)} for _ in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_for(folder: Path, hf_model: Path | None, data: Path, **settings: Any) -> TrainConfig:
    """A checked configuration of a run into `folder`, three steps of eight samples unless told otherwise."""
    values: dict[str, Any] = {
        "hf_model": str(hf_model) if hf_model else None,
        "data": [str(data)],
        "data_cache_path": str(data.with_suffix(".cache")),
        "save": str(folder),
        "save_optim": False,
        "seq_length": 128,
        "global_batch_size": 8,
        "lr": 1e-2,
        "min_lr": 1e-3,
        "lr_warmup_iters": 1,
        "seed": 5,
    }
    if "train_epochs" not in settings:
        values["train_iters"] = 3
    config = TrainConfig.of(**(values | settings))
    check(config)
    return config


def _run(config: TrainConfig) -> None:
    loop.run(config)


def train(world_size: int, config: TrainConfig) -> list[dict[str, Any]]:
    """Run on forked ranks; every record of the run's metrics.jsonl."""
    run_ranks(world_size, _run, config)
    return records(Path(config.checkpoint.save))


def records(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]
