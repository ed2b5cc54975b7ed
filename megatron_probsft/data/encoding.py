"""Rows to tokens, what of them is trained and how much it weighs, cut to length, in several processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, List, Value

from megatron_probsft.data import templates
from megatron_probsft.runtime.errors import UserError

Truncation = Literal["error", "drop", "left", "right"]
_ENCODED = Features(
    {
        "tokens": List(Value("int32")),
        "trained": List(Value("bool")),
        "weights": List(Value("float32")),
        "cut": Value("bool"),
        "source": Value("int32"),
    }
)


class Encoder:
    """A batch of rows of `load_rows` to a batch of samples; sent to the worker processes.

    Per sample: tokens; trained, whether each one is; weights, each one's, 0 where it is not trained, or null
    where all trained ones weigh 1; cut, whether truncation shortened it; source, as the row's.

    Raises UserError, naming file and row: what the template refuses; a token id not in [0, vocab); nothing
    to train; a sample of more than `limit` positions under "error".
    """

    def __init__(
        self,
        files: Sequence[str],
        tokenizer: Any,
        template: str,
        limit: int,
        vocab: int,
        truncation: Truncation,
    ) -> None:
        self._files, self._tokenizer, self._template = list(files), tokenizer, template
        self._limit, self._vocab, self._truncation = limit + 1, vocab, truncation

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        where = [f"{self._files[s]}:{r}" for s, r in zip(batch["source"], batch["row"], strict=True)]
        result: dict[str, list[Any]] = {name: [] for name in _ENCODED}
        samples = zip(where, batch["source"], self._tokenize(batch, where), batch["weights"], strict=True)
        for place, source, (tokens, marks), weights in samples:
            if not 0 <= min(tokens) <= max(tokens) < self._vocab:
                wrong = next(t for t in tokens if not 0 <= t < self._vocab)
                raise UserError(
                    f"{place}: vocabulary label out of range: token id {wrong} with a vocabulary of "
                    f"{self._vocab}: the tokenizer does not belong to the model"
                )
            if weights is not None:  # marks number the trained turns
                marks = [float(mark and weights[mark - 1]) for mark in marks]
            if not any(marks[1:]):
                raise UserError(
                    f"{place}: the sample has no label: nothing in it can be predicted and trained"
                )
            kept = self._fit(tokens, marks, place)
            if kept is None:
                continue
            result["tokens"].append(kept[0])
            result["trained"].append(kept[1] if weights is None else [weight > 0 for weight in kept[1]])
            result["weights"].append(None if weights is None else kept[1])
            result["cut"].append(len(kept[0]) < len(tokens))
            result["source"].append(source)
        return result

    def _tokenize(self, batch: dict[str, list[Any]], where: list[str]) -> Sequence[tuple[list[int], Any]]:
        """(tokens, marks) of each row; a mark is 0 where not trained, else the number of the trained turn."""
        if "prompt" in batch:
            return templates.encode_pairs(self._tokenizer, batch["prompt"], batch["response"], self._template)
        templates.check_template(self._tokenizer, self._template, conversations=True)
        conversations = []
        for place, messages, weights in zip(where, batch["messages"], batch["weights"], strict=True):
            try:
                segments = templates.split_messages(self._tokenizer, messages)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            if weights is not None:
                turns = itertools.count(1)
                segments = [(text, next(turns) if trained else 0) for text, trained in segments]
            conversations.append(segments)
        return templates.encode_segments(self._tokenizer, conversations)

    def _fit[Mark](
        self, tokens: list[int], marks: list[Mark], place: str
    ) -> tuple[list[int], list[Mark]] | None:
        limit = self._limit
        if len(tokens) <= limit:
            return tokens, marks
        if self._truncation == "error":
            raise UserError(
                f"{place}: the sample has {len(tokens) - 1} positions, more than --seq-length {limit - 1}: "
                "raise it, or choose --truncation drop, left or right"
            )
        if self._truncation == "left":
            tokens, marks = tokens[-limit:], marks[-limit:]
            return (tokens, marks) if any(marks[1:]) else None
        if self._truncation == "right" and any(marks[1 : limit - 1]):
            last = self._tokenizer.eos_token_id if marks[limit - 1] else tokens[limit - 1]
            return [*tokens[: limit - 1], last], marks[:limit]
        return None


def encode(rows: Dataset, encoder: Encoder, workers: int, file: Path) -> Dataset:
    """The encoded samples of all rows, in their order, in Arrow files named after `file`."""
    with _no_tokenizer_threads() if workers > 1 else contextlib.nullcontext():
        return rows.map(
            encoder,
            batched=True,
            batch_size=500,
            remove_columns=rows.column_names,
            features=_ENCODED,
            num_proc=workers if workers > 1 else None,
            cache_file_name=str(file),
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex,  # instead of hashing the tokenizer
            desc="tokenizing",
        )


@contextlib.contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """For processes about to be forked, which already share the CPUs."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
