"""Conversations as a chat template renders them, and which part of the text each assistant turn is.

Nothing is put together from parts: a sample's text is one rendering of the whole conversation, and an
assistant's turn is found in it. It begins where the template's generation prompt ends if the text begins with
that prompt, else where two renderings whose answers differ part; it ends where the rendering ends that has
no later messages. Where the template marks what is generated ({% generation %}), its marks count.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_probsft.data.text.chat_source import check_source, has_marks
from megatron_probsft.runtime.errors import UserError

_ROLES = ("system", "developer", "user", "assistant", "tool")
_THINK = "<think>"
_PROBES = ("A1", "B2")  # two answers without a common start


@dataclass(frozen=True)
class Conversation:
    """What a template gets. weights: of each assistant message; None where all are 1."""

    messages: Sequence[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Rendered:
    """A sample: its text and, for each trained turn, (start, end, the assistant turn's number from 1).

    marked: whether these are the template's own marks, which may leave out what ends a turn.
    """

    text: str
    turns: list[tuple[int, int, int]]
    ends_with_turn: bool
    marked: bool


class ChatTemplate:
    """A tokenizer's chat template; what it prints as today's date is the given one.

    date: YYYY-MM-DD; None is today.

    Raises UserError: no date; there is no template, it is no Jinja, or it draws at random.
    """

    def __init__(self, tokenizer: Any, date: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._special = dict(tokenizer.special_tokens_map)
        try:
            self._date = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
        except ValueError:
            raise UserError(f"--template-date {date} is no date: write YYYY-MM-DD") from None
        check_source(self._source(None))

    def prompt(self, conversation: Conversation) -> str:
        """The text from which an assistant's turn is generated, as servers render it.

        A template that ignores add_generation_prompt, so that a model would have to begin its turn itself,
        is followed by what it puts before an assistant's content.
        """
        messages = conversation.messages
        text = self._render(conversation, messages, add_generation_prompt=True)
        if self._has_prompt:
            return text
        header = self._header(conversation, messages)
        return header if header[len(text) :].strip() else text

    def samples(self, conversation: Conversation) -> tuple[list[Rendered], list[str]]:
        """The conversation as samples, and what its user should know of how it is rendered.

        One sample, unless the template renders a turn otherwise once later messages follow (thoughts are
        dropped from history): then one for each assistant turn that has a weight, each in the context that
        inference shows.

        Raises UserError: what `check_messages` refuses; what the template itself refuses, or fails at; tool
        calls that it does not show; a turn that cannot be found in the rendering.
        """
        check_messages(conversation.messages)
        if not self._shows_answers:
            raise UserError("the chat template does not show what assistants say")
        messages = conversation.messages
        places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        whole, marks = self._render_with_marks(conversation, messages)
        notes: list[str] = []
        found = [self._turn(conversation, index, whole, notes) for index in places]
        texts = [text for text, _, _ in found]
        turns = [(start, end, number) for number, (_, start, end) in enumerate(found, start=1)]
        notes += self._unused(conversation, whole, [*zip(places, texts, strict=True)])
        if all(whole.startswith(text[:end]) for text, _, end in found):
            ends = messages[-1]["role"] == "assistant"
            text = whole[: turns[-1][1]] if ends else whole
            marked = _marked(turns, marks)
            if len({turn for _, _, turn in marked}) < len(turns):
                notes.append(
                    "turns that the chat template's {% generation %} marks leave out: they are not trained"
                )
            samples = [Rendered(text, marked, ends, bool(marks))]
        else:
            notes.append(
                "split into one sample per assistant turn, since the chat template renders earlier turns "
                "otherwise once later ones follow"
            )
            samples = []
            for index, text, turn in zip(places, texts, turns, strict=True):
                if conversation.weights is None or conversation.weights[turn[2] - 1]:
                    _, marks = self._render_with_marks(conversation, messages[: index + 1])
                    samples.append(Rendered(text[: turn[1]], _marked([turn], marks), True, bool(marks)))
        shown = whole if len(samples) == 1 else "".join(sample.text for sample in samples)
        return samples, [*notes, *self._rewritten(messages, shown)]

    def _turn(
        self, conversation: Conversation, index: int, whole: str, notes: list[str]
    ) -> tuple[str, int, int]:
        """The rendering up to the assistant's message, and where in it its turn starts and ends."""
        messages = conversation.messages
        text = whole if index == len(messages) - 1 else self._render(conversation, messages[: index + 1])
        start = prompt = self._render(conversation, messages[:index], add_generation_prompt=True)
        if not (self._has_prompt and text.startswith(prompt)):
            start = self._header(conversation, messages[:index])
            if not text.startswith(start):
                raise UserError(
                    f"the chat template renders message {index + 1} so that where the assistant's turn "
                    "starts cannot be told: it needs {% generation %} marks"
                )
            if self._has_prompt:
                more = f", which has {prompt[len(start) :]!r} more" if prompt.startswith(start) else ""
                notes.append(
                    f"turns that the chat template begins otherwise than its generation prompt{more}: "
                    "trained is what it renders, generation starts from the prompt"
                )
            elif start[len(prompt) :].strip():
                notes.append(
                    "a chat template that ignores add_generation_prompt: our evaluation begins the "
                    "assistant's turn as training does, a server will not"
                )
        content = messages[index]["content"]
        if content.lstrip().startswith(_THINK) and text[len(start) - len(_THINK) - 4 :].count(
            _THINK
        ) > content.count(_THINK):
            notes.append(
                f"turns whose content begins with {_THINK} after a {_THINK} of the chat template's own: put "
                "thoughts into reasoning_content, if the template knows it"
            )
        end = len(text.rstrip())
        if end <= len(start):
            raise UserError(f"the chat template shows nothing of message {index + 1}, an assistant's")
        return text, len(start), end

    def _header(self, conversation: Conversation, messages: Sequence[dict[str, Any]]) -> str:
        """The rendering up to where an assistant's content begins."""
        return os.path.commonprefix([*self._answered(conversation, messages)])

    def _answered(self, conversation: Conversation, messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """The messages with one answer after them, and with another."""
        first, second = (
            self._render(conversation, [*messages, {"role": "assistant", "content": content}])
            for content in _PROBES
        )
        return first, second

    @cached_property
    def _shows_answers(self) -> bool:
        """Whether what assistants say is in a rendering at all; of some templates only images are."""
        bare = Conversation([{"role": "user", "content": "A1"}])
        first, second = self._answered(bare, bare.messages)
        return first != second

    @cached_property
    def _has_prompt(self) -> bool:
        """Whether add_generation_prompt does anything."""
        bare = Conversation([{"role": "user", "content": "A1"}])
        return self._render(bare, bare.messages) != self._render(
            bare, bare.messages, add_generation_prompt=True
        )

    def _unused(self, conversation: Conversation, whole: str, texts: list[tuple[int, str]]) -> list[str]:
        """What every rendering would be the same without: of all messages, and up to each of the turns."""
        messages, tools, kwargs = conversation.messages, conversation.tools, conversation.kwargs
        renderings = [(len(messages), whole), *((index + 1, text) for index, text in texts[:-1])]
        notes = []

        def same(other: Conversation) -> bool:
            return all(self._render(other, other.messages[:count]) == text for count, text in renderings)

        for name in dict.fromkeys(key for one in messages for key in one if key not in ("role", "content")):
            without = [{key: value for key, value in one.items() if key != name} for one in messages]
            if not same(Conversation(without, tools, kwargs)):
                continue
            if name == "tool_calls":
                raise UserError(
                    "the chat template shows no tool_calls, so that turns would be trained without them: use "
                    "a model whose template has them, or write the calls into content"
                )
            notes.append(f"{name!r} in messages, of which the chat template shows nothing")
        if tools and same(Conversation(messages, None, kwargs)):
            notes.append("'tools', of which the chat template shows nothing")
        before = messages[: texts[-1][0]]
        for name in kwargs:
            other = Conversation(
                messages, tools, {key: value for key, value in kwargs.items() if key != name}
            )
            prompts = (self._render(one, before, add_generation_prompt=True) for one in (conversation, other))
            if same(other) and len(set(prompts)) == 1:
                notes.append(f"{name!r} in chat_template_kwargs, which changes nothing in the chat template")
        return notes

    @staticmethod
    def _rewritten(messages: Sequence[dict[str, Any]], text: str) -> list[str]:
        return [
            f"messages of the {message['role']} that the chat template rewrites or leaves out in part: "
            "trained is what it renders"
            for message in messages
            if message["content"].strip() not in text
        ][:1]

    def _render_with_marks(
        self, conversation: Conversation, messages: Sequence[dict[str, Any]]
    ) -> tuple[str, list[tuple[int, int]]]:
        if not has_marks(self._source(conversation.tools)):
            return self._render(conversation, messages), []
        return self._rendered(conversation, messages, return_assistant_tokens_mask=True)

    def _render(self, conversation: Conversation, messages: Sequence[dict[str, Any]], **how: Any) -> str:
        return self._rendered(conversation, messages, **how)[0]

    def _rendered(
        self, conversation: Conversation, messages: Sequence[dict[str, Any]], **how: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, marks = render_jinja_template(
                conversations=[list(messages)],
                tools=conversation.tools,  # type: ignore[arg-type]
                chat_template=self._source(conversation.tools),
                strftime_now=self._date.strftime,
                **{**self._special, **conversation.kwargs, **how},
            )
        except jinja2.TemplateError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"the chat template refuses the messages: {reason}") from None
        except Exception as error:  # whatever Python raises at what the template does with the messages
            reason = (str(error).strip() or "without a reason").splitlines()[0]
            raise UserError(
                f"the chat template fails at the messages: {type(error).__name__}: {reason}"
            ) from None
        return texts[0], list(marks[0]) if marks else []  # type: ignore[arg-type]

    def _source(self, tools: Any) -> str:
        try:
            return self._tokenizer.get_chat_template(tools=tools)
        except ValueError:
            raise UserError("the tokenizer has no (default) chat template: use --template plain") from None


def check_messages(messages: Sequence[dict[str, Any]]) -> None:
    """UserError: unknown role, content that is no string, empty turn; no assistant's turn, or it is first."""
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


def _marked(turns: list[tuple[int, int, int]], marks: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The template's own marks instead of the turns, each with the number of the turn that it lies in."""
    if not marks:
        return turns
    marked = [
        (start, end, number)
        for start, end in marks
        for begin, finish, number in turns
        if start < min(end, finish) and end > begin
    ]
    if not marked:
        raise UserError("the chat template marks nothing of the assistant's turns with {% generation %}")
    return marked
