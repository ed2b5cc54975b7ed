"""A domain: all that belongs to one kind of problem, as one file of this folder says it.

The smallest file, for problems whose answer is a number:

    from megatron_probsft.domains.domain import Domain, Shape
    from megatron_probsft.domains.task import graded_by

    DOMAIN = Domain(
        name="sums",
        version=1,
        shapes=(Shape(("question", "answer"), lambda question, answer: (question, answer, answer, {})),),
        grade=graded_by("number"),
        max_new_tokens=16,
    )

Importing the package imports these files, for their names and templates: what takes long to import is
imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_probsft.data.text.named_templates import NamedTemplate
from megatron_probsft.domains.benchmarks.loading import (
    ReadRow,
    load_files,
    load_mixed_files,
    prepared_question,
)
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.task import Task
from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True)
class Example:
    """A row of training or test data."""

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
    """A kind of file, recognised by its columns."""

    columns: tuple[str, ...]  # names or dotted paths; all of text
    convert: Callable[..., Converted]  # takes the texts of these columns


@dataclass(frozen=True)
class Generated:
    """The examples of a source, and what a card says of them."""

    train: Sequence[Example]
    test: Sequence[Example]
    about: dict[str, Any]  # for the card: versions, what is held out
    notes: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)  # reason to number

    def with_each(self, change: Callable[[Example], Example]) -> Generated:
        """Return the same with every example changed."""
        return replace(self, train=[*map(change, self.train)], test=[*map(change, self.test)])


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A program that makes a domain's data."""

    generate: Callable[[int | None, int | None, int], Generated]  # numbers of rows, None for all; seed
    what: str  # it is, in a few words
    real: bool = False  # its rows are the domain's own, not a stand-in for them


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The numbers that `one-click` takes: the paper's, and small ones for a model on two CPU cores."""

    seq_length: int = 3072
    micro_batch_size: int = 1
    weight_decay: float = 0.01
    paper_micro_batch_size: int | None = None  # the paper's denominator depends on it; None: it has none
    small_seq_length: int = 1024
    small_max_new_tokens: int = 160


@dataclass(frozen=True, kw_only=True)
class Domain(Task):
    """One kind of problem; see `Task` for the name, the version, sampling and grading."""

    # Prompts. A domain without any takes the chat template of the model.
    templates: Mapping[str, NamedTemplate] = field(default_factory=dict)  # by their --template names
    prompts: Mapping[str, str] = field(default_factory=dict)  # model family to its template's name
    paper_prompts: Mapping[str, str] = field(default_factory=dict)  # likewise, as the paper's models saw it

    # Data to train on, and to test on.
    ability: str = ""  # for the rows' column of that name; empty: the domain's name
    instruction: str = ""  # follows the question in the rows' column `prompt`, as in the paper's files
    shapes: tuple[Shape, ...]
    hub_train: str | None = None  # as in --data
    hub_test: str | None = None
    generator: Generator | None = None

    # Evaluation.
    read_row: ReadRow = prepared_question
    columns: str = "extra_info.question and reward_model.ground_truth"  # what `read_row` reads, for --help
    benchmarks: Mapping[str, str] = field(default_factory=dict)  # public ones: name to place on the hub
    mixed_files: bool = False  # a file may hold several benchmarks, which its rows name
    own_test: bool = False  # experiments score on the test rows of its data, not on public benchmarks

    experiment: Experiment = Experiment()
    place: int = 100  # in lists of all domains; of equal ones the name decides

    def __post_init__(self) -> None:
        """Raise ValueError for a prompt that is none of the templates."""
        missing = {*self.prompts.values(), *self.paper_prompts.values()} - self.templates.keys()
        if missing:
            raise ValueError(f"domain {self.name}: templates lacks {', '.join(sorted(missing))}")

    @property
    def grader_name(self) -> str:
        return self.name

    def load(self, data: Sequence[str], benchmarks: Sequence[str] | None) -> list[Problem]:
        """See `Task`. UserError: no data, and no public benchmarks."""
        if not data and not self.benchmarks:
            raise UserError(f"--task {self.name} has no public benchmarks: name files with --data")
        load = load_mixed_files if self.mixed_files else load_files
        return load(self.name, self.benchmarks, self.read_row, data, benchmarks)


def row_of(domain: Domain, example: Example, split: str) -> dict[str, Any]:
    """A row as the paper's files have it."""
    return {
        "data_source": example.data_source,
        "ability": domain.ability or domain.name,
        "prompt": [{"role": "user", "content": example.question + domain.instruction}],
        "reward_model": {"style": "rule", "ground_truth": example.truth},
        "extra_info": {
            "split": split, "index": example.index, "question": example.question, "answer": example.response,
            **example.more,
        },
    }  # fmt: skip


def check_number(name: str, number: int | None, most: int | None = None, why: str = "") -> None:
    """Raise UserError unless it is None or from 0 to `most`; without `most`, below 2^31."""
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
