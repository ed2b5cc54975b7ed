"""A chat template is rendered: texts, the template's own marks, and what a rendering tells of it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_probsft.data.text.chat_source import check_source, has_marks
from megatron_probsft.data.text.conversation import Conversation
from megatron_probsft.runtime.errors import UserError

_ANSWERS = ("A1", "B2")  # two answers without a common start


class Renderer:
    """Renders messages with a tokenizer's chat template; today's date is always the given one.

    date: YYYY-MM-DD; None is today.

    Raises UserError: no date; there is no template, it is no Jinja, or it draws at random.
    """

    def __init__(self, tokenizer: Any, date: str | None) -> None:
        self._tokenizer = tokenizer
        self._special = dict(tokenizer.special_tokens_map)
        try:
            self._date = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
        except ValueError:
            raise UserError(f"--template-date {date} is no date: write YYYY-MM-DD") from None
        check_source(self._source(None))

    def text(self, conversation: Conversation, messages: Sequence[dict[str, Any]], **how: Any) -> str:
        """Render these messages, with the conversation's tools and arguments."""
        return self._rendered(conversation, messages, **how)[0]

    def text_and_marks(
        self, conversation: Conversation, messages: Sequence[dict[str, Any]]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render these messages, and say which parts of the text {% generation %} marks, if it does."""
        if not has_marks(self._source(conversation.tools)):
            return self.text(conversation, messages), []
        return self._rendered(conversation, messages, return_assistant_tokens_mask=True)

    def header(self, conversation: Conversation, messages: Sequence[dict[str, Any]]) -> str:
        """Render up to where the content of an assistant's next message begins."""
        return os.path.commonprefix([*self._answered(conversation, messages)])

    @cached_property
    def shows_answers(self) -> bool:
        """True if a rendering shows what assistants say; some templates show images only."""
        bare = Conversation([{"role": "user", "content": "A1"}])
        first, second = self._answered(bare, bare.messages)
        return first != second

    @cached_property
    def has_prompt(self) -> bool:
        """True if add_generation_prompt changes anything."""
        bare = Conversation([{"role": "user", "content": "A1"}])
        return self.text(bare, bare.messages) != self.text(bare, bare.messages, add_generation_prompt=True)

    def _answered(self, conversation: Conversation, messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """Render the messages with one answer after them, and with another."""
        first, second = (
            self.text(conversation, [*messages, {"role": "assistant", "content": content}])
            for content in _ANSWERS
        )
        return first, second

    def _rendered(
        self, conversation: Conversation, messages: Sequence[dict[str, Any]], **how: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and its marks, as servers and transformers render them."""
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
