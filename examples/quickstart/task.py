"""The quick start's task: sums and differences of two two-digit numbers, from reasoning-gym's chain_sum.

The model is to answer in one line, "27 + 46 = 73". Most of that it can copy from the question, with some
confidence from the start; the digits of the result it must learn. One-digit numbers are left out: they make
only 200 questions, which would run out and leave training and held-out items unlike each other.

Scored is the last number of what the model says: the base model answers in sentences, and is not to fail for
its form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import write_whole

STEPS = 24
HELDOUT = 200
GRADER = "number"
MAX_NEW_TOKENS = 24
PRIOR_LEANING = "p"
_CONFIG = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
_TRIES = 5  # per question asked for: after that, the generator is taken to have no new ones


def write_task(folder: Path, *, train: int, heldout: int = HELDOUT, seed: int = 7) -> dict[str, Any]:
    """Write `train.jsonl` and `heldout.jsonl`, which share no question. Returns their description.

    Keys: `prompt`, `response` (trained on) and `answer` (the number alone, for the grader).
    27 + 46 and 46 + 27 count as one question. The held-out questions do not depend on `train`.

    Raises:
        UserError: the generator has fewer different questions.
    """
    items = list(islice(_different_items(_TRIES * (train + heldout), seed), heldout + train))
    if len(items) < heldout + train:
        raise UserError(
            f"chain_sum gave {len(items)} different questions of {heldout + train}: ask for fewer"
        )
    parts = {"heldout": items[:heldout], "train": items[heldout:]}
    if {_question(row) for row in parts["heldout"]} & {_question(row) for row in parts["train"]}:
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
    from reasoning_gym import create_dataset  # here: it takes seconds

    seen = set()
    for item in create_dataset("chain_sum", size=tries, seed=seed, **_CONFIG):
        response = f"{item['metadata']['expression']} = {item['answer']}"
        row = {"prompt": item["question"], "response": response, "answer": item["answer"]}
        if _question(row) not in seen:
            seen.add(_question(row))
            yield row


def _question(row: dict[str, str]) -> tuple[str, ...]:
    """Return the operator and its terms; those of a sum are sorted."""
    first, operator, second = row["response"].split(" = ")[0].split(" ")
    return (operator, *(sorted((first, second)) if operator == "+" else (first, second)))


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    """Write the rows; the file appears under its name when complete."""
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
