"""The settings that decide what a token store holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Truncation = Literal["error", "drop", "left", "right"]


@dataclass(frozen=True)
class StoreOptions:
    """All that decides a token store's content beside its files and the tokenizer."""

    template: str
    """`chat`, `plain` or a named template."""
    seq_length: int
    """Positions that a sample may have: one less than its tokens."""
    vocab_size: int
    """Token ids are smaller than this."""
    truncation: Truncation = "error"
    """The fate of a longer sample. "error" refuses it and "drop" leaves it out. "left" and "right" cut that
    side to seq_length + 1 tokens, "right" putting EOS last where it cuts a response in two, and leave out a
    sample that keeps no label of its response."""
    prompt_key: str = "prompt"
    response_key: str = "response"
    messages_key: str = "messages"
    weight_key: str | None = None
    template_date: str | None = None
    """YYYY-MM-DD, which a chat template shows as today's date; None is today. It matters only where the
    template shows a date."""

    def keys(self) -> dict[str, Any]:
        """Return the columns' names, by `read_rows`'s parameters."""
        return {
            "prompt_key": self.prompt_key,
            "response_key": self.response_key,
            "messages_key": self.messages_key,
            "weight_key": self.weight_key,
        }
