"""Rows become samples: tokens, which of them are trained and how much they weigh, cut to length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_probsft.data.sources.columns import EXTRAS
from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.text import templates
from megatron_probsft.data.text.chat import ChatTemplate, Rendered
from megatron_probsft.data.text.conversation import Conversation
from megatron_probsft.runtime.errors import UserError

_Row = dict[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Samples that some rows became, one after the other."""

    tokens: np.ndarray  # int32 [total]
    weights: np.ndarray  # float32 [total], 0 where not trained
    lengths: np.ndarray  # int64 [n], tokens of each sample
    source: np.ndarray  # int32 [n]
    weighted: bool  # whether any trained token may weigh other than 1
    cut: int  # samples that truncation shortened
    left_out: int  # samples that truncation dropped
    rows: int  # how many it was made of
    notes: dict[str, tuple[int, str]]  # what the user should know: (of how many rows, the place of the first)

    def sums_of_labels(self, values: np.ndarray) -> np.ndarray:
        """Return each sample's sum, float64 `[n]`, without its first token, which nothing predicts."""
        return _sums_of_labels(values, self.lengths)


class Encoder:
    """A function that makes samples of some rows of `read_rows`; worker processes inherit it.

    Raises UserError, naming file and row: what the template refuses; a token id not in [0, vocab_size);
    nothing to train; a sample of more than seq_length positions under "error".
    """

    def __init__(self, files: Sequence[str], tokenizer: Any, options: StoreOptions) -> None:
        chat = options.template == "chat"
        self._chat = ChatTemplate(tokenizer, options.template_date) if chat else None
        self._files, self._tokenizer, self._template = list(files), tokenizer, options.template
        self._vocab, self._truncation = options.vocab_size, options.truncation
        self._limit = options.seq_length + 1  # in tokens

    def __call__(self, rows: Sequence[_Row]) -> Encoded:
        notes: dict[str, tuple[int, str]] = {}
        owners, samples = self._tokenize(rows, notes)
        ids, weights = zip(*itertools.chain(*samples), strict=True)
        of_segment = np.fromiter(map(len, ids), np.int64, len(ids))
        tokens = np.fromiter(itertools.chain(*ids), np.int64, of_segment.sum())
        values = np.repeat(np.array(weights, np.float32), of_segment)
        segments = np.fromiter(map(len, samples), np.int64, len(samples))
        lengths = np.add.reduceat(of_segment, np.cumsum(segments) - segments)
        self._check_samples(owners, tokens, values, lengths)
        spans, cut = self._fit(owners, tokens, values, lengths)
        if len(spans) < len(samples) or cut:
            tokens, values = (
                np.concatenate([a[:0], *(a[s] for s in spans.values())]) for a in (tokens, values)
            )
            lengths = np.array([span.stop - span.start for span in spans.values()], np.int64)
        return Encoded(
            tokens=tokens.astype(np.int32),
            weights=values,
            lengths=lengths,
            source=np.array([owners[index]["source"] for index in spans], np.int32),
            weighted=any(row["weights"] is not None for row in rows),
            cut=cut,
            left_out=len(samples) - len(spans),
            rows=len(rows),
            notes=notes,
        )

    def _place(self, row: _Row) -> str:
        return f"{self._files[row['source']]}:{row['row']}"

    def _tokenize(
        self, rows: Sequence[_Row], notes: dict[str, tuple[int, str]]
    ) -> tuple[list[_Row], list[list[tuple[list[int], float]]]]:
        """Return each sample's row, and the sample as segments: (tokens, the weight of each or 0)."""
        owners, samples = list(rows), []
        if self._chat is not None:
            rendered = [(row, sample) for row in rows for sample in self._render(row, notes)]
            owners = [row for row, _ in rendered]
            encoded = templates.encode_rendered(self._tokenizer, [sample for _, sample in rendered])
            samples = [segments for segments, _ in encoded]
            for row, (_, eos_added) in zip(owners, encoded, strict=True):
                if eos_added:
                    self._note(
                        "turns that the chat template ends with no special token: EOS follows", row, notes
                    )
        else:
            self._check_pairs(rows)
            prompts, responses = ([row[name] for row in rows] for name in ("prompt", "response"))
            samples = templates.encode_pairs(self._tokenizer, prompts, responses, self._template)
        return owners, [
            [(tokens, _weight(row["weights"], turn)) for tokens, turn in sample]
            for row, sample in zip(owners, samples, strict=True)
        ]

    def _render(self, row: _Row, notes: dict[str, tuple[int, str]]) -> list[Rendered]:
        assert self._chat is not None
        more = {"tools": row.get("tools"), "kwargs": row.get("chat_template_kwargs") or {}}
        if "prompt" in row:
            pair = (row["prompt"], row["response"], row.get("system"))
            conversation = templates.conversation_of(*pair, weights=row["weights"], **more)
        else:
            conversation = Conversation(row["messages"], weights=row["weights"], **more)
        try:
            samples, said = self._chat.samples(conversation)
        except UserError as error:
            raise UserError(f"{self._place(row)}: {error}") from None
        for note in dict.fromkeys(said):
            self._note(note, row, notes)
        return samples

    def _note(self, note: str, row: _Row, notes: dict[str, tuple[int, str]]) -> None:
        count, place = notes.get(note, (0, self._place(row)))
        notes[note] = (count + 1, place)

    def _check_pairs(self, rows: Sequence[_Row]) -> None:
        templates.check_template(self._tokenizer, self._template, conversations="messages" in rows[0])
        for row in rows:
            for name in EXTRAS:
                if name in row:
                    raise UserError(
                        f"{self._place(row)}: has {name!r}, which --template {self._template} cannot show: "
                        "use --template chat, or leave that column out"
                    )

    def _check_samples(
        self, owners: Sequence[_Row], tokens: np.ndarray, values: np.ndarray, lengths: np.ndarray
    ) -> None:
        if tokens.min() < 0 or tokens.max() >= self._vocab:
            wrong = int(np.flatnonzero((tokens < 0) | (tokens >= self._vocab))[0])
            place = self._place(owners[int(np.searchsorted(np.cumsum(lengths), wrong, "right"))])
            raise UserError(
                f"{place}: vocabulary label out of range: token id {tokens[wrong]} with a vocabulary of "
                f"{self._vocab}: the tokenizer does not belong to the model"
            )
        labels = _sums_of_labels(values > 0, lengths)
        if not labels.all():
            place = self._place(owners[int(np.flatnonzero(labels == 0)[0])])
            raise UserError(f"{place}: the sample has no label: nothing in it can be predicted and trained")

    def _fit(
        self, owners: Sequence[_Row], tokens: np.ndarray, values: np.ndarray, lengths: np.ndarray
    ) -> tuple[dict[int, slice], int]:
        """Return which part of each sample is kept, and how many are cut. EOS may be put into `tokens`."""
        ends = np.cumsum(lengths).tolist()
        spans = dict(enumerate(map(slice, [0, *ends], ends)))
        too_long = np.flatnonzero(lengths > self._limit).tolist()
        for index in too_long:
            start, end = spans.pop(index).start, ends[index]
            if self._truncation == "error":
                raise UserError(
                    f"{self._place(owners[index])}: the sample has {end - start - 1} positions, more than "
                    f"--seq-length {self._limit - 1}: raise it, or choose --truncation drop, left or right"
                )
            if self._truncation == "left" and values[end - self._limit + 1 : end].any():
                spans[index] = slice(end - self._limit, end)
            last = start + self._limit - 1
            if self._truncation == "right" and values[start + 1 : last].any():
                spans[index] = slice(start, last + 1)
                if values[last]:
                    tokens[last] = self._tokenizer.eos_token_id
        return dict(sorted(spans.items())), len(spans) - (len(owners) - len(too_long))


def _weight(weights: list[float] | None, turn: int) -> float:
    """Return a segment's weight; `turn` counts the trained turns from 1, and 0 is not trained."""
    return float(turn > 0) if weights is None or turn == 0 else weights[turn - 1]


def _sums_of_labels(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    if not len(lengths):
        return np.zeros(0)
    starts = np.cumsum(lengths) - lengths
    return np.add.reduceat(values, starts, dtype=np.float64) - values[starts]
