"""Texts are turned into token ids, and parts of the texts into ranges of tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import decoders

from megatron_probsft.data.text.chat import Rendered
from megatron_probsft.data.tokenizers.token_ids import is_fast, library_of, token_ids

Placed = tuple[list[int], list[tuple[int, int, int]]]
"""A sample's token ids, and its turns as (first token, one past the last, turn)."""


def with_places(tokenizer: Any, samples: Sequence[Rendered]) -> list[Placed]:
    """Return each text's tokens and its turns among them; a token that reaches into a turn is in it."""
    if not is_fast(tokenizer):
        return _by_common_start(tokenizer, samples)
    library = library_of(tokenizer, split=False)
    sizes = _byte_sizes(tokenizer, len(tokenizer))
    if sizes is None:
        return _by_offsets(library, samples)
    encoded = library.encode_batch_fast([sample.text for sample in samples], add_special_tokens=False)
    placed = [_by_bytes(one.ids, sizes, sample) for one, sample in zip(encoded, samples, strict=True)]
    again = [index for index, one in enumerate(placed) if one is None]
    for index, one in zip(again, _by_offsets(library, [samples[index] for index in again]), strict=True):
        placed[index] = one
    return placed  # type: ignore[return-value]


def _by_bytes(ids: list[int], sizes: np.ndarray, sample: Rendered) -> Placed | None:
    """Place turns by bytes, which byte-level tokens are in their order; None where they do not add up."""
    ends = np.cumsum(sizes[ids])
    if not len(ids) or ends[-1] != len(sample.text.encode()):
        return None
    edges = [len(sample.text[:edge].encode()) for start, end, _ in sample.turns for edge in (start, end)]
    first = np.searchsorted(ends, edges[::2], "right").tolist()
    last = (np.searchsorted(ends, edges[1::2], "left") + 1).tolist()
    return ids, list(zip(first, last, (turn for _, _, turn in sample.turns), strict=True))


@lru_cache(maxsize=4)
def _byte_sizes(tokenizer: Any, size: int) -> np.ndarray | None:
    """Return each token's number of bytes; None where tokens are no bytes. `size` tells when it grew."""
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return None
    vocab = tokenizer.get_vocab()
    sizes = np.zeros(max(vocab.values()) + 1, np.int64)
    for token, index in vocab.items():
        sizes[index] = len(token)  # a character for each byte
    for index, token in tokenizer.added_tokens_decoder.items():
        sizes[index] = len(token.content.encode())
    return sizes


def _by_offsets(library: Any, samples: Sequence[Rendered]) -> list[Placed]:
    """Place turns by where the tokenizers library says that tokens come from, which takes longer."""
    found = []
    texts = [sample.text for sample in samples]
    for sample, one in zip(samples, library.encode_batch(texts, add_special_tokens=False), strict=True):
        offsets = one.offsets
        turns = [
            (
                bisect_right(offsets, start, key=lambda place: place[1]),
                bisect_left(offsets, end, key=lambda place: place[0]),
                turn,
            )
            for start, end, turn in sample.turns
        ]
        found.append((one.ids, turns))
    return found


def _by_common_start(tokenizer: Any, samples: Sequence[Rendered]) -> list[Placed]:
    """Place turns by the tokens that a text shares with its parts, for tokenizers that tell no places."""
    found = []
    texts = [sample.text for sample in samples]
    for sample, ids in zip(samples, token_ids(tokenizer, texts, rendered=True), strict=True):
        edges = [edge for start, end, _ in sample.turns for edge in (start, end)]
        starts = token_ids(tokenizer, [sample.text[:edge] for edge in edges], rendered=True)
        counts = [_common(ids, start) for start in starts]
        turns = [(counts[2 * i], counts[2 * i + 1], turn) for i, (_, _, turn) in enumerate(sample.turns)]
        found.append((ids, turns))
    return found


def _common(first: list[int], second: list[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
