"""What a domain consists of, and a row of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True)
class Example:
    question: str  # without a template's instruction
    response: str  # what is trained
    truth: str  # what an evaluation compares with
    data_source: str
    index: int  # in its source, from 0
    more: dict[str, Any] = field(
        default_factory=dict
    )  # further keys of extra_info, the same in all of a domain


type Converted = tuple[str, str, str, dict[str, Any]] | str
"""Question, response, truth and more of an `Example`; or the reason why a row is left out."""


@dataclass(frozen=True)
class Shape:
    """Files of one layout, recognised by their columns."""

    columns: tuple[str, ...]  # names or dotted paths; all of text
    convert: Callable[..., Converted]  # takes the texts of these columns


@dataclass(frozen=True)
class Generated:
    name: str  # of data_source
    train: Sequence[Example]
    test: Sequence[Example]
    about: dict[str, Any]  # for the card: versions, what is held out
    notes: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)  # reason to number


@dataclass(frozen=True)
class Domain:
    name: str
    ability: str
    hub_train: str  # as in --data
    hub_test: str | None
    shapes: tuple[Shape, ...]
    generate: Callable[[int | None, int | None, int], Generated]  # numbers of rows, seed
    generator: str  # what it is, in a few words
    instruction: str = ""  # of `prompt`, as in the paper's files


def row_of(domain: Domain, example: Example, split: str) -> dict[str, Any]:
    """A row as the paper's files have it."""
    return {
        "data_source": example.data_source,
        "ability": domain.ability,
        "prompt": [{"role": "user", "content": example.question + domain.instruction}],
        "reward_model": {"style": "rule", "ground_truth": example.truth},
        "extra_info": {
            "split": split, "index": example.index, "question": example.question, "answer": example.response,
            **example.more,
        },
    }  # fmt: skip


def check_number(name: str, number: int | None, most: int | None = None, why: str = "") -> None:
    """UserError unless None or from 0 to `most`; without `most` below 2^31."""
    if number is not None and not 0 <= number <= (2**31 - 1 if most is None else most):
        limit = "0 or more" if number < 0 else "below 2^31"
        limit = limit if most is None else f"from 0 to {most:,}{why}"
        raise UserError(f"--{name} must be {limit}, got {number:,}")


def texts_of(row: dict[str, Any], columns: Sequence[str], where: str) -> Iterator[str]:
    """The text at each name or dotted path. UserError: something else is there, or nothing."""
    for column in columns:
        value: Any = row
        for part in column.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, str):
            kind = "null or missing" if value is None else f"of type {type(value).__name__}"
            raise UserError(f"{where}: {column!r} is {kind}, not text")
        yield value
