"""A conversation as a chat template gets it, and the conversations that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.runtime.errors import UserError

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """All that a template is given of a row; `weights` has one for each assistant message, None: all 1."""

    messages: Sequence[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: Sequence[float] | None = None


def check_messages(messages: Sequence[dict[str, Any]]) -> None:
    """Refuse messages that nothing can be trained on.

    Raises UserError: an unknown role; content that is no string; an empty assistant turn; an assistant's turn
    that comes first, or none.
    """
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise UserError(f"message {number} has the role {role!r}: use one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"message {number} has content of type {type(content).__name__}, not a string")
        if role == "assistant" and not any(map(message.get, ("content", "tool_calls", "reasoning_content"))):
            raise UserError(f"message {number} is an empty assistant turn")
    if messages and messages[0]["role"] == "assistant":
        raise UserError("message 1 is an assistant turn: start with a system or user message")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("there is no assistant turn to train on")
