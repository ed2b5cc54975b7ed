"""Tokens that end trained turns are found in the data: a model that learned them stops there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_CHUNK = 1 << 20  # tokens looked at together
_RARE = 0.001  # of the turns: fewer are an accident
_WHITE_SPACE = 4  # tokens of it after an end, at most: templates go on with a line end or two


class Samples(Protocol):
    """The part of a `TokenStore` that is read here.

    tokens int32 `[total]`; trained bool `[total]`; offsets int64 `[n + 1]`, where each sample starts.
    """

    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class TurnEnds:
    """The tokens that end trained turns, counted."""

    counts: dict[int, int]
    """The number of turns that each token ends, the most frequent first."""
    turns: int
    """The number of all turns, those included that end in the middle of a text."""

    def describe(self, tokenizer: Any) -> str:
        """Return one line for people."""
        if not self.counts:
            return (
                "no trained turn ends with a special token: the model will not learn to stop. Does the "
                "chat template render an end of a turn?"
            )
        named = ", ".join(
            f"{tokenizer.convert_ids_to_tokens(token)} ({count / self.turns:.1%})"
            for token, count in self.counts.items()
        )
        without = self.turns - sum(self.counts.values())
        more = f"; {without:,} of {self.turns:,} end without, and do not teach the model to stop"
        return f"trained turns end with {named}{more if without else ''}"


def turn_ends(samples: Samples, tokenizer: Any) -> TurnEnds:
    """Count the tokens that end runs of trained tokens; white space after them is passed over.

    Counted are special and added tokens (so no word at which a long response was cut) that end one turn in
    a thousand at least and that mostly stand at an end where they are trained. Passes once over the store
    (10 million tokens: 0.1 s), a million tokens at a time.
    """
    ends, trained = np.zeros(0, np.int64), np.zeros(0, np.int64)
    markers = marker_tokens(tokenizer)
    blank = dict.fromkeys(markers, False)
    for positions, tokens in _runs(samples):
        last = _without_white_space(samples, positions, tokenizer, blank)
        ends, trained = _sum(ends, np.bincount(last)), _sum(trained, np.bincount(tokens))
    turns = int(ends.sum())
    found = {
        int(token): int(ends[token])
        for token in np.flatnonzero((ends > 0) & (ends >= _RARE * turns) & (2 * ends > trained[: len(ends)]))
        if int(token) in markers
    }
    return TurnEnds(dict(sorted(found.items(), key=lambda one: -one[1])), turns)


def marker_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens that are no pieces of text: special, added and control tokens."""
    markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    sentencepiece = getattr(tokenizer, "sp_model", None)
    if sentencepiece:
        markers |= {token for token in range(len(sentencepiece)) if sentencepiece.is_control(token)}
    return markers if tokenizer.unk_token_id == tokenizer.eos_token_id else markers - {tokenizer.unk_token_id}


def _runs(samples: Samples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each chunk, the positions of the last tokens of trained runs, and all trained tokens."""
    for start in range(0, len(samples.tokens), _CHUNK):
        trained = samples.trained[start : start + _CHUNK]
        last = trained.copy()
        following = samples.trained[start + 1 : start + 1 + len(trained)]
        last[: len(following)] &= ~following
        first, end = np.searchsorted(samples.offsets, [start + 1, start + len(trained) + 1])
        of_samples = samples.offsets[first:end] - 1 - start  # the next sample may start trained: cut at left
        last[of_samples] = trained[of_samples]
        yield start + np.flatnonzero(last), samples.tokens[start : start + len(trained)][trained]


def _without_white_space(
    samples: Samples, positions: np.ndarray, tokenizer: Any, blank: dict[int, bool]
) -> np.ndarray:
    """Return the runs' last tokens that are no white space; `blank` remembers which tokens are."""
    for _ in range(_WHITE_SPACE):
        tokens = samples.tokens[positions]
        for token in np.unique(tokens).tolist():
            if token not in blank:
                blank[token] = not tokenizer.decode([token]).strip()
        back = np.isin(tokens, [token for token, is_blank in blank.items() if is_blank])
        back &= (positions > 0) & samples.trained[positions - 1]
        if not back.any():
            break
        positions = positions - back
    return samples.tokens[positions]


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer
