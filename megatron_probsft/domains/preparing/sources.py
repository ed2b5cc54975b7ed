"""Examples from files, folders and data sets of the hub, in the shapes that a domain knows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.domains.domain import Domain, Example, Generated, Shape, texts_of
from megatron_probsft.runtime.errors import UserError


def from_the_hub(domain: Domain) -> tuple[list[str], list[str]]:
    """The domain's own data sets to train and to test on. UserError: one that cannot be reached, or none."""
    without = f"--data FILE with the columns {', '.join(domain.shapes[0].columns)}"
    if domain.generator:
        without += f", or --generate ({domain.generator.what})"
    if domain.hub_train is None:
        raise UserError(f"{domain.name} has no data on the hub: give {without}")
    items, test_data = [domain.hub_train], [domain.hub_test] if domain.hub_test else []
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its attempts
    for item in (*items, *test_data):
        print(f"asking the hub for {item}", flush=True)
        try:
            reader_of(item).columns()
        except UserError as error:
            raise UserError(f"{error}; without the hub: {without}") from None
    return items, test_data


def read_both(
    domain: Domain, items: Sequence[str], test_data: Sequence[str], train: int | None, test: int | None
) -> tuple[Generated, int]:
    """The examples of both, with what a card says of them; how many rows were read.

    train, test: the most of each. Raises UserError as `read_examples` does.
    """
    to_train, dropped, read = read_examples(domain, items, train)
    to_test, more, also = read_examples(domain, test_data, test)
    both = {reason: dropped.get(reason, 0) + more.get(reason, 0) for reason in (*dropped, *more)}
    about = {"train from": ", ".join(items), "test from": ", ".join(test_data) or "nowhere"}
    return Generated(to_train, to_test, about, (), both), read + also


def read_examples(
    domain: Domain, items: Sequence[str], most: int | None
) -> tuple[list[Example], dict[str, int], int]:
    """The first `most` usable examples; of the rows that were read, those left out by reason; rows read.

    An item is what `reader_of` takes. Raises UserError, naming file and row: what its readers refuse; columns
    of no shape that the domain knows; a value that is not text.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    read = 0
    for item in items:
        shape, keys = _shape_of(domain, item)
        for number, row in reader_of(item).rows(keys):
            if len(examples) == most:
                return examples, dict(dropped), read
            read += 1
            converted = shape.convert(*texts_of(row, shape.columns, f"{item}:{number}"))
            if isinstance(converted, str):
                dropped[converted] += 1
                continue
            question, response, truth, more = converted
            name = row.get("data_source")
            name = name if isinstance(name, str) else item
            examples.append(Example(question, response, truth, name, number - 1, more))
    return examples, dict(dropped), read


def _shape_of(domain: Domain, item: str) -> tuple[Shape, list[str]]:
    """The shape of a file, and what to read of it: where a row is from too, if it says so."""
    columns = reader_of(item).columns()
    if columns is None:
        raise UserError(f"{item}: there are no rows")
    names = set(_paths(columns))
    for shape in domain.shapes:
        if names.issuperset(shape.columns):
            return shape, [*shape.columns, *(["data_source"] if "data_source" in columns else [])]
    known = "; or ".join(", ".join(shape.columns) for shape in domain.shapes)
    raise UserError(f"{item}: no layout of {domain.name} data: it needs the columns {known}")


def _paths(columns: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """All names and dotted paths of nested columns."""
    for name, value in columns.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
