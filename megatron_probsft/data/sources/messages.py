"""A row's message is brought into the one form that templates take; nothing of it is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megatron_probsft.runtime.errors import UserError

_SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
MISSING = object()


def normalised(message: Any, where: str) -> dict[str, Any]:
    """Return `{role, content, …}` with every field that says something; `where` names the message in errors.

    role and content are strings. ShareGPT's `from` and `value` become role and content; a list of text parts
    becomes their text, one after the other; the arguments of a tool call, often JSON in a string, become the
    object that servers give to templates. Fields that are null, and empty `tool_calls`, are left out. An
    assistant message with tool calls may lack content.

    Raises UserError: no object; a missing or unknown role or content; a part that is no text (an image);
    a malformed tool call; text that is not Unicode.
    """
    if not isinstance(message, dict):
        raise UserError(f"{where} is {kind_of(message)}, not an object with role and content")
    fields = {key: value for key, value in message.items() if value is not None}
    if "role" not in fields and "from" in fields:
        fields = _from_sharegpt(fields, where)
    if fields.get("tool_calls") == []:
        del fields["tool_calls"]
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"], f"{where}: 'tool_calls'")
    role = text_of(fields.get("role", message.get("role", MISSING)), "role", where)
    content = fields.get("content", message.get("content", MISSING))
    if content in (None, MISSING) and role == "assistant" and "tool_calls" in fields:
        content = ""
    if isinstance(content, list | tuple):
        content = _joined(content, where)
    fields = {
        "role": role,
        "content": text_of(content, "content", where),
        **_without(fields, "role", "content"),
    }
    for name in ("reasoning_content", "name", "tool_call_id"):
        if name in fields:
            text_of(fields[name], name, where)
    check_unicode(fields, where)
    return fields


def text_of(value: Any, name: str, where: str) -> str:
    """Return the value if it is a string of valid Unicode, and raise UserError if not."""
    if not isinstance(value, str):
        hint = " (conversations go into a messages column)" if isinstance(value, list) else ""
        raise UserError(f"{where}: {name!r} is {kind_of(value)}, not a string{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {name!r} is not valid Unicode: {error.reason}") from None
    return value


def kind_of(value: Any) -> str:
    """Describe a value in words: missing, null, or of its type."""
    if value is MISSING:
        return "missing"
    return "null" if value is None else f"of type {type(value).__name__}"


def check_unicode(value: Any, where: str) -> None:
    """Raise UserError if a string anywhere in the value is no valid UTF-8, or it is no JSON value."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: is not valid Unicode: {error.reason}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: holds what JSON cannot: {error}") from None


def _from_sharegpt(fields: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = fields["from"]
    if speaker not in _SPEAKERS:
        raise UserError(
            f"{where}: 'from' is {speaker!r}: use one of {', '.join(_SPEAKERS)}, or messages with role and "
            "content (calls of a tool go into tool_calls)"
        )
    content = {"content": fields["value"]} if "value" in fields else {}
    return {"role": _SPEAKERS[speaker], **content, **_without(fields, "from", "value")}


def _joined(parts: Sequence[Any], where: str) -> str:
    texts = []
    for number, part in enumerate(parts, start=1):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if (
            not isinstance(part, dict)
            or kind not in (*_TEXT_PARTS, None)
            or not isinstance(part.get("text"), str)
        ):
            what = repr(kind) if kind and kind not in _TEXT_PARTS else f"{kind_of(part)} without a text"
            raise UserError(
                f"{where} has content of type list whose part {number} is {what}: only text is supported"
            )
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise UserError(f"{where} is {kind_of(calls)}, not a list of calls")
    return [_tool_call(call, f"{where}: call {number}") for number, call in enumerate(calls, start=1)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where} has no function with a name: write {{'function': {{'name', 'arguments'}}}}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            raise UserError(f"{where}: 'arguments' is a string that is no JSON: {arguments[:40]!r}") from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: 'arguments' is {kind_of(arguments)}, not an object")
    function = {**function, "arguments": arguments}
    return (
        {**call, "function": function} if "function" in call else {"type": "function", "function": function}
    )


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}
