"""The quick start's task: sums and differences of two numbers of one or two digits, from reasoning-gym.

The model answers in one line, "27 + 46 = 73". Most of that it can copy from the question, and so trusts early;
the digits of the result it must learn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from reasoning_gym import create_dataset

from megatron_probsft.runtime.errors import UserError

STEPS = 24
HELDOUT = 200
MAX_NEW_TOKENS = 24
PRIOR_LEANING = "p"
_CONFIG = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
_TRIES = 20  # per question asked for: after that, the generator is taken to have no new ones


def write_task(folder: Path, *, train: int, heldout: int = HELDOUT, seed: int = 7) -> dict[str, Any]:
    """Write `train.jsonl` and `heldout.jsonl`, which share no question; returns what they are.

    Keys: `prompt`, `response` (trained on) and `answer` (what the grader `exact` compares with: the response).
    The held-out questions depend on the seed and their number only, not on `train`.

    Raises:
        UserError: the generator has fewer different questions.
    """
    items = list(islice(_different_items(_TRIES * (train + heldout), seed), heldout + train))
    if len(items) < heldout + train:
        raise UserError(
            f"chain_sum gave {len(items)} different questions of {heldout + train}: ask for fewer"
        )
    parts = {"heldout": items[:heldout], "train": items[heldout:]}
    if {item["prompt"] for item in parts["heldout"]} & {item["prompt"] for item in parts["train"]}:
        raise RuntimeError("training and held-out items share a question")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        _write(folder / f"{name}.jsonl", rows)
    return {
        "task": "chain_sum",
        **_CONFIG,
        "train": train,
        "heldout": heldout,
        "seed": seed,
        "example": items[0],
    }


def _different_items(tries: int, seed: int) -> Iterator[dict[str, str]]:
    seen = set()
    for item in create_dataset("chain_sum", size=tries, seed=seed, **_CONFIG):
        if item["question"] not in seen:
            seen.add(item["question"])
            response = f"{item['metadata']['expression']} = {item['answer']}"
            yield {"prompt": item["question"], "response": response, "answer": response}


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    """The file appears under its name when complete."""
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.replace(file)
