"""Figlet puzzles from reasoning-gym: the paper's own items, made anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

from megatron_probsft.domains.domain import Example, Generated, check_number
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.progress import tqdm

NAME = "reasoning-gym figlet_font"
TRAIN, TEST = 40_000, 5_000  # the paper's: items 0 … 39,999, and from there on
_CONFIG = {"size": 10, "min_word_len": 2, "max_word_len": 5, "space_letters": True}  # an index may pass size
_CHUNK = 100


def generate(train: int | None, test: int | None, seed: int) -> Generated:
    """The items 0 … train − 1, and 40,000 … 40,000 + test − 1; all CPUs make them.

    Raises UserError: more items than the paper's numbers; reasoning-gym is not installed.
    """
    check_number("train", train, TRAIN, ": the items from there on are the test")
    check_number("test", test, TEST, ", the paper's")
    train, test = TRAIN if train is None else train, TEST if test is None else test
    indices = [*range(train), *range(TRAIN, TRAIN + test)]
    try:
        generator = f"reasoning-gym=={version('reasoning-gym')} figlet_font"
    except ImportError:
        raise UserError("figlet puzzles need reasoning-gym: pip install reasoning-gym==0.1.25") from None
    examples = [
        Example(question, word, word, NAME, index)
        for index, (question, word) in zip(indices, _items(indices, seed), strict=True)
    ]
    about = {"generator": generator, **_CONFIG, "seed": seed}
    return Generated(examples[:train], examples[train:], about)


def _items(indices: list[int], seed: int) -> Iterator[tuple[str, str]]:
    chunks = [(indices[start : start + _CHUNK], seed) for start in range(0, len(indices), _CHUNK)]
    workers = max(1, min(os.cpu_count() or 1, len(chunks)))
    bar = tqdm(total=len(indices), unit=" items", desc="figlet puzzles", disable=None)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, bar:
        for items in pool.map(_chunk, chunks):
            bar.update(len(items))
            yield from items


def _chunk(work: tuple[list[int], int]) -> list[tuple[str, str]]:
    indices, seed = work
    items = map(_dataset(seed).__getitem__, indices)
    return [(item["question"], item["answer"]) for item in items]


@cache
def _dataset(seed: int) -> Any:
    from reasoning_gym import create_dataset  # in the workers only: it takes seconds

    return create_dataset("figlet_font", seed=seed, **_CONFIG)
