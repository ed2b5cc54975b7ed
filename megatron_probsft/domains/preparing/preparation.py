"""A domain's data as a folder: train, validation and test files with the paper's columns, and a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.domains.domain import Domain, Example, Generated, check_number, row_of
from megatron_probsft.domains.preparing.card import make_card, markdown
from megatron_probsft.domains.preparing.sources import from_the_hub, read_both
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.runtime.build_folder import build_folder
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.run_files.scoring import Card

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Preparation:
    """A folder that is asked for, with the settings that `prepare-data --help` explains.

    Attributes:
        source: "hub" (the paper's files), "generated", or files, folders and hub data sets to train on.
        test_data: what to test on, where `source` names files.
        train, test: how many of the source's rows, from the first on; None: all.
        validation: how many of the rows to train on become the validation file instead, from the first on.
        seed: the generator's.
        tokenizer: a model folder; adds token statistics to the card.
    """

    domain: str
    source: str | Sequence[str]
    output: str | Path
    test_data: Sequence[str] = ()
    train: int | None = None
    test: int | None = None
    validation: int = 128
    seed: int = 42
    tokenizer: str | None = None

    @property
    def items(self) -> list[str]:
        """The files, folders and hub data sets that `source` names; none for "hub" and "generated"."""
        if self.source in ("hub", "generated"):
            return []
        return [self.source] if isinstance(self.source, str) else [*self.source]


def prepare(asked: Preparation) -> dict[str, Any]:
    """Write train.parquet, validation.parquet, test.parquet, card.json and card.md; return the card.

    A part without rows has no file. The folder appears whole. Where it already holds this very preparation,
    its card is returned, with the key "already_there".

    Raises UserError: unknown domain; the hub cannot be reached; what `read_examples` and the generators
    refuse; nothing left to train on; a folder that holds something else.
    """
    domain = get_domain(asked.domain)
    for name in ("train", "test", "validation"):
        check_number(name, getattr(asked, name))
    if asked.test_data and not asked.items:
        raise UserError("--test-data goes with --data: the other sources bring their own test rows")
    settings, output = _settings(asked), Path(asked.output)
    if there := _card_of(output, settings):
        return there | {"already_there": True}
    check_writable(output, "--output")
    found, read = _examples(domain, asked)
    parts = _parts(found, asked)
    card = make_card(domain, found, parts, asked.tokenizer) | {"read": read, "settings": settings}
    card = Card.from_keys(card).to_json()
    _write(domain, parts, card, output)
    return card


def _settings(asked: Preparation) -> dict[str, Any]:
    """The settings that decide on the folder's content; another preparation differs in one of them."""
    items = asked.items
    return {
        "domain": asked.domain, "source": items or asked.source, "test_data": [*asked.test_data],
        "content": [reader_of(item).digest() for item in (*items, *asked.test_data)],
        "train": asked.train, "test": asked.test, "validation": asked.validation, "seed": asked.seed,
        "tokenizer": asked.tokenizer,
    }  # fmt: skip


def _card_of(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The card of a folder that holds this preparation; None of one that is empty or not there."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        card = json.loads((output / "card.json").read_text())
        differ = [name for name in settings if card["settings"].get(name) != settings[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"--output {output} is not empty and holds no card.json: name another folder"
        ) from None
    Card.check(card, str(output / "card.json"))
    if differ:
        raise UserError(
            f"--output {output} holds other data: its {differ[0]} is {card['settings'].get(differ[0])}, not "
            f"{settings[differ[0]]}: name another folder"
        )
    return card


def _examples(domain: Domain, asked: Preparation) -> tuple[Generated, int]:
    """All rows, and how many were read of the source for them."""
    if asked.source == "generated":
        if domain.generator is None:
            raise UserError(f"--generate: {domain.name} has no generator: give --data FILE")
        made = domain.generator.generate(asked.train, asked.test, asked.seed)
        return made, len(made.train) + len(made.test) + sum(made.dropped.values())
    items, test_data = from_the_hub(domain) if asked.source == "hub" else (asked.items, asked.test_data)
    return read_both(domain, items, test_data, asked.train, asked.test)


def _parts(found: Generated, asked: Preparation) -> dict[str, Sequence[Example]]:
    """The examples of each file, by its name. UserError: none would be left to train on."""
    count = asked.validation
    if len(found.train) <= count:
        raise UserError(
            f"{asked.domain}: {len(found.train):,} rows to train on, and --validation {count} of them leaves "
            "none"
        )
    parts = {"train": found.train[count:], "validation": found.train[:count], "test": found.test}
    return {part: examples for part, examples in parts.items() if examples}


def _write(domain: Domain, parts: dict[str, Sequence[Example]], card: dict[str, Any], output: Path) -> None:
    try:
        with build_folder(output.parent) as building:
            folder = building / "data"
            folder.mkdir()
            for part, examples in parts.items():
                rows = pa.Table.from_pylist([row_of(domain, one, part) for one in examples])
                pq.write_table(rows, folder / f"{part}.parquet", compression="zstd")
            (folder / "card.md").write_text(markdown(card))
            (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
            folder.rename(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
