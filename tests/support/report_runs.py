"""Synthetic folders of runs, as the trainer and evaluate.py leave them, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

# Of the label tokens' p, in 20 bins: one model before training, and after.
BEFORE = [
    0.30,
    0.05,
    0.04,
    0.03,
    0.03,
    0.02,
    0.02,
    0.02,
    0.02,
    0.02,
    0.02,
    0.02,
    0.02,
    0.03,
    0.03,
    0.03,
    0.04,
    0.05,
    0.06,
    0.15,
]
AFTER = [
    0.08,
    0.02,
    0.01,
    0.01,
    0.01,
    0.01,
    0.01,
    0.02,
    0.02,
    0.02,
    0.02,
    0.02,
    0.03,
    0.03,
    0.03,
    0.04,
    0.05,
    0.07,
    0.10,
    0.40,
]


def write_training(folder: Path, objective: str, steps: int = 24, nll: float = 1.2, **settings: Any) -> Path:
    """A trainer's run folder: validations at 0, the middle and the end with NLL `nll`·{1, ½, ¼}."""
    folder.mkdir(parents=True)
    config = {
        "hf_model": "models/SmolLM2-135M-Instruct", "save": str(folder), "data": ["train.jsonl"],
        "objective": objective, "lr": 1e-4, "global_batch_size": 24, "seed": 1234,
    }  # fmt: skip
    (folder / "train_config.yaml").write_text(yaml.safe_dump(config | settings, sort_keys=False))
    records = []
    for step in range(steps + 1):
        if step:
            means = {
                "loss": nll / (1 + 0.1 * step),
                "nll": nll / (1 + 0.12 * step),
                "mean_p": 1 - 0.6 / (1 + 0.1 * step),
            }
            extra = {"grad_norm": 30.0 / step, "seconds": {"data": 0.5, "forward_backward": 10.0}}
            records.append({"kind": "train", "iteration": step, **means, **extra})
        if step in (0, steps // 2, steps):
            part = 2.0 ** -(2 * step // steps)
            means = {"loss": nll * part, "nll": nll * part, "mean_p": 1 - 0.55 * part}
            shares = [part * a + (1 - part) * b for a, b in zip(BEFORE, AFTER, strict=True)]
            records.append({"kind": "validation", "iteration": step, **means, "p_histogram": shares})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = {"status": "finished", "wall_seconds": 292.4}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_score(
    folder: Path, verdicts: dict[str, list[int]], generation: str = "I add the two: {id}", samples: int = 1
) -> Path:
    """An evaluation: per benchmark its problems' verdicts of sample 0 (other samples are wrong)."""
    folder.mkdir(parents=True)
    benchmarks, lines = {}, []
    for benchmark, correct in verdicts.items():
        accuracy = sum(correct) / len(correct) / samples
        benchmarks[benchmark] = {
            "n": len(correct), "samples": samples, "accuracy": accuracy,
            "accuracy_ci95": [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.15)],
            "first_sample_accuracy": sum(correct) / len(correct), "timeouts": 0, "unparsable": 1,
        }  # fmt: skip
        for index, one in enumerate(correct):
            for sample in range(samples):
                right = one if sample == 0 else 0
                lines.append(
                    {
                        "benchmark": benchmark, "id": f"{benchmark}-{index}", "index": index,
                        "sample": sample,
                        "prompt": f"What is {index} + {index}?", "answer": str(2 * index),
                        "generation": generation.replace("{id}", f"{benchmark}-{index}"),
                        "prediction": str(2 * index) if right else None,
                        "verdict": "correct" if right else "wrong", "correct": right,
                    }
                )  # fmt: skip
    accuracies = [numbers["accuracy"] for numbers in benchmarks.values()]
    mean = sum(accuracies) / len(accuracies)
    interval = [max(0.0, mean - 0.07), min(1.0, mean + 0.08)]
    summary = {
        "model": "models/SmolLM2-135M-Instruct", "task": "math",
        "n": len(lines) // samples, "samples": samples,
        "accuracy": mean, "accuracy_ci95": interval, "benchmarks": benchmarks, "average": {"accuracy": mean},
        "seconds": 34.3,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
