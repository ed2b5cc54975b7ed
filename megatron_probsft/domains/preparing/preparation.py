"""A domain's data into a folder: train, validation and test files with the paper's columns, and a card."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.domains import figfont, medical
from megatron_probsft.domains import math as mathematics
from megatron_probsft.domains.domain import Domain, Example, Generated, check_number, row_of
from megatron_probsft.domains.preparing.card import markdown, token_statistics
from megatron_probsft.domains.preparing.sources import read_examples
from megatron_probsft.runtime.build_folder import build_folder
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.run_files.scoring import Card

_DOMAINS = {one.name: one for one in (mathematics.DOMAIN, medical.DOMAIN, figfont.DOMAIN)}


def prepare(
    domain: str,
    source: str | Sequence[str],
    output: str | Path,
    *,
    test_data: Sequence[str] = (),
    train: int | None = None,
    test: int | None = None,
    validation: int = 128,
    seed: int = 42,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Write train.parquet, validation.parquet, test.parquet, card.json and card.md; return the card.

    `source` is "hub" (the paper's files), "generated", or files, folders and hub data sets to train on, to
    which `test_data` belongs. `train` and `test` limit the source's rows, from the first on; the first
    `validation` of those to train on become the validation file instead. A part without rows has no file.
    `seed` is the generator's. `tokenizer`, a model folder, adds token statistics.

    `output` appears whole. Where it already holds this very preparation, its card is returned, with the key
    "already_there".

    Raises UserError: unknown domain; the hub cannot be reached; what `read_examples` and the generators
    refuse; nothing left to train on; an `output` that holds something else.
    """
    if domain not in _DOMAINS:
        raise UserError(f"domain {domain} is unknown: use one of {', '.join(_DOMAINS)}")
    for name, number in (("train", train), ("test", test), ("validation", validation)):
        check_number(name, number)
    items = [] if source in ("hub", "generated") else [source] if isinstance(source, str) else [*source]
    if test_data and not items:
        raise UserError("--test-data goes with --data: the other sources bring their own test rows")
    settings = {
        "domain": domain, "source": items or source, "test_data": [*test_data],
        "content": [reader_of(item).digest() for item in (*items, *test_data)],
        "train": train, "test": test, "validation": validation, "seed": seed, "tokenizer": tokenizer,
    }  # fmt: skip
    output = Path(output)
    if there := _card_of(output, settings):
        return there | {"already_there": True}
    check_writable(output, "--output")
    chosen = _DOMAINS[domain]
    found, read = _examples(chosen, source, items, test_data, train, test, seed)
    if len(found.train) <= validation:
        raise UserError(
            f"{domain}: {len(found.train):,} rows to train on, and --validation {validation} of them "
            "leaves none"
        )
    parts = {
        "train": found.train[validation:], "validation": found.train[:validation], "test": found.test,
    }  # fmt: skip
    parts = {part: examples for part, examples in parts.items() if examples}
    trained_on = {one.question for one in parts["train"]}
    card = {
        "domain": domain,
        "data_sources": sorted({one.data_source for examples in parts.values() for one in examples}),
        "rows": {part: len(examples) for part, examples in parts.items()},
        "read": read,
        "dropped": found.dropped,
        "test_questions_in_training": sum(one.question in trained_on for one in found.test),
        "notes": [*found.notes, *_notes(parts)],
        "about": found.about,
        "tokens": token_statistics(domain, tokenizer, parts) if tokenizer else None,
        "settings": settings,
    }
    card = Card.from_keys(card).to_json()
    _write(chosen, parts, card, output)
    return card


def _card_of(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The card of a folder that holds this preparation; None of one that is empty or not there."""
    if output.is_dir() and not any(output.iterdir()):
        return None
    if not output.exists():
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


def _examples(
    domain: Domain, source: Any, items: list[str], test_data: Sequence[str],
    train: int | None, test: int | None, seed: int,
) -> tuple[Generated, int]:  # fmt: skip
    """All rows, and how many were read of the source for them."""
    if source == "generated":
        made = domain.generate(train, test, seed)
        return made, len(made.train) + len(made.test) + sum(made.dropped.values())
    if source == "hub":
        items, test_data = [domain.hub_train], [domain.hub_test] if domain.hub_test else []
        _check_hub(domain, [*items, *test_data])
    to_train, dropped, read = read_examples(domain, items, train)
    to_test, more, also = read_examples(domain, test_data, test)
    both = {reason: dropped.get(reason, 0) + more.get(reason, 0) for reason in (*dropped, *more)}
    about = {"train from": ", ".join(items), "test from": ", ".join(test_data) or "nowhere"}
    return Generated("", to_train, to_test, about, (), both), read + also


def _check_hub(domain: Domain, items: list[str]) -> None:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its attempts
    for item in items:
        print(f"asking the hub for {item}", flush=True)
        try:
            reader_of(item).columns()
        except UserError as error:
            raise UserError(
                f"{error}; without the hub: --data FILE with the columns "
                f"{', '.join(domain.shapes[0].columns)}, or --generate ({domain.generator})"
            ) from None


def _notes(parts: dict[str, Sequence[Example]]) -> list[str]:
    notes = []
    if "validation" in parts:
        notes.append(
            f"Validation: the first {len(parts['validation']):,} training rows, held out. The paper "
            "validates on its first 128 and trains on them too."
        )
    if "test" not in parts:
        notes.append("No test rows: the source has none, or none were asked for (--test).")
    return notes


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
