"""The columns of a data file: which of them hold prompts and responses, messages, weights and extras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_probsft.data.sources.messages import MISSING
from megatron_probsft.data.sources.readers import Reader
from megatron_probsft.runtime.errors import UserError

EXTRAS = ("system", "tools", "chat_template_kwargs")
"""Columns that reach the chat template beside a row's texts."""
_ALPACA = "instruction, input and output, as of Alpaca: a prompt is the instruction, a line end, the input"


@dataclass(frozen=True)
class Columns:
    """The columns of a file's rows, and whether they hold pairs or conversations."""

    kind: Literal["pairs", "messages"]
    texts: tuple[str, ...]  # prompt and response, or messages
    extras: tuple[str, ...]
    weight: str | None
    input: str | None = None  # Alpaca: follows the instruction
    history: str | None = None  # Alpaca: earlier turns
    known_as: str = ""  # in words, where these are not the common columns


def find_columns(file: str, reader: Reader, keys: tuple[str, str, str, str | None]) -> Columns:
    """Find a file's columns by its first row or its schema.

    `keys` are the names (or dotted paths) of prompt, response, messages and, if there is one, weight.

    Raises UserError: there are no rows, or a column is missing.
    """
    prompt_key, response_key, messages_key, weight_key = keys
    first = reader.columns()
    if first is None:
        raise UserError(f"{file}: there are no rows")

    def has(*names: str) -> bool:
        return all(look_up(first, name) is not MISSING for name in names)

    def made(kind: Literal["pairs", "messages"], *texts: str, **more: Any) -> Columns:
        extras = tuple(name for name in EXTRAS if may_have(name) and name not in texts)
        return Columns(kind, texts, extras, weight_key, **more)

    def may_have(name: str) -> bool:  # rows of JSON may differ
        return name in first or not reader.columnar

    default = (prompt_key, response_key, messages_key) == ("prompt", "response", "messages")
    wanted, name = "", ""  # the column that must be there, and its name in the message
    if has(prompt_key):
        found, wanted, name = made("pairs", prompt_key, response_key), response_key, repr(response_key)
    elif default and not has("messages") and has("conversations"):
        found = made("messages", "conversations", known_as="conversations, as of ShareGPT")
    elif default and not has("messages") and has("instruction", "output"):
        more = {name: name for name in ("input", "history") if may_have(name)}
        found = made("pairs", "instruction", "output", known_as=_ALPACA, **more)
    else:
        found, wanted = made("messages", messages_key), messages_key
        name = f"{prompt_key!r} nor {messages_key!r}"
    columns = ", ".join(_names(first))
    if wanted and not has(wanted):
        raise UserError(
            f"{file}: has no column {name}; its columns are {columns}: "
            "name the right ones with --prompt-key, --response-key or --messages-key"
        )
    if weight_key is not None and not has(weight_key):
        raise UserError(f"{file}: has no column {weight_key!r} of --weight-key; its columns are {columns}")
    return found


def _names(row: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in row.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


def look_up(row: dict[str, Any], key: str) -> Any:
    """Return the value at a name or a dotted path; `MISSING` where there is none."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
    return value
