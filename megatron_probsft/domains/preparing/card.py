"""A prepared folder's content, for programs and for people: counts, what was left out, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from megatron_probsft.domains.domain import Domain, Example, Generated
from megatron_probsft.domains.templates import default_template
from megatron_probsft.runtime.progress import tqdm

_ROWS = 500  # at once


def make_card(
    domain: Domain, found: Generated, parts: dict[str, Sequence[Example]], tokenizer: str | None
) -> dict[str, Any]:
    """The content of card.json; what was read, and the settings, are the caller's to add.

    tokenizer: a model folder whose tokens are counted. Raises UserError as `token_statistics` does.
    """
    trained_on = {one.question for one in parts["train"]}
    return {
        "domain": domain.name,
        "data_sources": sorted({one.data_source for examples in parts.values() for one in examples}),
        "rows": {part: len(examples) for part, examples in parts.items()},
        "read": 0,
        "dropped": found.dropped,
        "test_questions_in_training": sum(one.question in trained_on for one in found.test),
        "notes": [*found.notes, *_notes(parts)],
        "about": found.about,
        "tokens": token_statistics(domain, tokenizer, parts) if tokenizer else None,
    }


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


def token_statistics(domain: Domain, folder: str, parts: dict[str, Sequence[Example]]) -> dict[str, Any]:
    """The lengths in tokens of each part's prompts, with template and BOS, and of its responses, with EOS.

    Raises UserError: no tokenizer in `folder`, or one of no known family.
    """
    # Here: transformers takes seconds to import, and few ask for these numbers.
    from megatron_probsft.data.text.templates import encode_pairs
    from megatron_probsft.data.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    template = default_template(domain, tokenizer)
    statistics: dict[str, Any] = {"tokenizer": folder, "template": template}
    for part, examples in parts.items():
        lengths = []
        bar = tqdm(total=len(examples), unit=" rows", desc=f"tokens of {part}", disable=None)
        with bar:
            for start in range(0, len(examples), _ROWS):
                some = examples[start : start + _ROWS]
                pairs = encode_pairs(
                    tokenizer, [one.question for one in some], [one.response for one in some], template
                )
                lengths += [[len(tokens) for tokens, _ in pair] for pair in pairs]
                bar.update(len(some))
        prompt, response = np.array(lengths).T
        statistics[part] = {
            "prompt": _summary(prompt), "response": _summary(response), "sample": _summary(prompt + response),
            "trained_tokens": int(response.sum()),
        }  # fmt: skip
    return statistics


def _summary(lengths: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(lengths.mean()), 1), "median": float(np.median(lengths)),
        "p95": round(float(np.percentile(lengths, 95)), 1), "max": int(lengths.max()),
    }  # fmt: skip


def markdown(card: dict[str, Any]) -> str:
    """The card as a page for people, in Markdown."""
    lines = [f"# {card['domain']}: {', '.join(card['data_sources'])}", ""]
    lines += [f"- **{note}**" for note in card["notes"]]
    lines += [f"- {name}: {value}" for name, value in card["about"].items()]
    lines += ["", "| file | rows |", "|---|---:|"]
    lines += [f"| {part}.parquet | {rows:,} |" for part, rows in card["rows"].items()]
    lines += ["", f"Source rows read: {card['read']:,}. Left out: {dropped(card)}."]
    lines += [f"Test questions that training has too: {card['test_questions_in_training']:,}."]
    if tokens := card["tokens"]:
        lines += ["", f"Tokens ({tokens['tokenizer']}, --template {tokens['template']}):", ""]
        lines += ["| | | mean | median | p95 | max |", "|---|---|---:|---:|---:|---:|"]
        for part in card["rows"]:
            for side in ("prompt", "response", "sample"):
                numbers = " | ".join(f"{value:,g}" for value in tokens[part][side].values())
                lines.append(f"| {part} | {side} | {numbers} |")
    return "\n".join(lines) + "\n"


def dropped(card: dict[str, Any]) -> str:
    """A phrase that says what was left out."""
    return ", ".join(f"{count:,} ({reason})" for reason, count in card["dropped"].items()) or "nothing"


def table(card: dict[str, Any]) -> Table:
    """A table of the card's numbers for the console."""
    found = Table(title=f"{card['domain']} · {', '.join(card['data_sources'])}", title_justify="left")
    found.add_column("file")
    found.add_column("rows", justify="right")
    tokens = card["tokens"]
    sides = ("prompt", "response") if tokens else ()
    for side in sides:
        found.add_column(f"{side} tokens: mean · median · p95 · max", justify="right")
    for part, rows in card["rows"].items():
        numbers = [" · ".join(f"{value:,g}" for value in tokens[part][side].values()) for side in sides]
        found.add_row(f"{part}.parquet", f"{rows:,}", *numbers)
    return found
