"""Samples as people read them: the text, with what of it is trained in brackets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from megatron_probsft.data.store.token_store import TokenStore

_BRACKETS = ("⟦", "⟧")


def show_samples(store: TokenStore, tokenizer: Any, count: int, console: Console) -> None:
    """Print the first `count` samples whole; what is trained stands in ⟦ ⟧, on a terminal also in green."""
    for index in range(min(count, len(store))):
        source = store.sources[store.source[index]]
        console.rule(f"sample {index + 1} of {len(store):,} ({source}), trained is ⟦ ⟧", align="left")
        console.print(sample_text(store, tokenizer, index), soft_wrap=True)
    if count:
        console.rule()


def sample_text(store: TokenStore, tokenizer: Any, index: int) -> Text:
    """Return one sample, special tokens spelled. A first token is never trained: nothing predicts it."""
    tokens, trained = store.sample(index)
    text = Text()
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(tokens)]
    for start, end in itertools.pairwise(edges):
        part = tokenizer.decode(tokens[start:end].tolist(), clean_up_tokenization_spaces=False)
        text.append(
            f"{_BRACKETS[0]}{part}{_BRACKETS[1]}" if trained[start] else part,
            "green" if trained[start] else "",
        )
    return text
