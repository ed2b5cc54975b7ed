"""Conversations become samples, as a chat template renders them, in which each assistant turn is found.

Nothing is put together from parts: a sample's text is one rendering of the whole conversation, and an
assistant's turn is found in it. It begins where the template's generation prompt ends if the text begins with
that prompt, else where two renderings whose answers differ part; it ends where the rendering ends that has
no later messages. Where the template marks what is generated ({% generation %}), its marks count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.data.text.conversation import Conversation, check_messages
from megatron_probsft.data.text.renderer import Renderer
from megatron_probsft.runtime.errors import UserError

_THINK = "<think>"


@dataclass(frozen=True)
class Rendered:
    """A sample's text and its trained turns, each as (start, end, the assistant turn's number from 1).

    ends_with_turn: whether the last turn ends the text. marked: whether the turns are the template's own
    marks, which may leave out what ends a turn.
    """

    text: str
    turns: list[tuple[int, int, int]]
    ends_with_turn: bool
    marked: bool


class ChatTemplate:
    """A tokenizer's chat template: texts to generate from, and samples to train on.

    date: YYYY-MM-DD, which the template shows as today's date; None is today.

    Raises UserError: no date; there is no template, it is no Jinja, or it draws at random.
    """

    def __init__(self, tokenizer: Any, date: str | None = None) -> None:
        self._renderer = Renderer(tokenizer, date)

    def prompt(self, conversation: Conversation) -> str:
        """Return the text from which an assistant's turn is generated, as servers render it.

        A template that ignores add_generation_prompt, so that a model would have to begin its turn itself,
        is followed by what it puts before an assistant's content.
        """
        messages = conversation.messages
        text = self._renderer.text(conversation, messages, add_generation_prompt=True)
        if self._renderer.has_prompt:
            return text
        header = self._renderer.header(conversation, messages)
        return header if header[len(text) :].strip() else text

    def samples(self, conversation: Conversation) -> tuple[list[Rendered], list[str]]:
        """Return the conversation as samples, and notes for its user on how it is rendered.

        It is one sample, unless the template renders a turn otherwise once later messages follow (thoughts
        are dropped from history). Then it is one for each assistant turn that has a weight, each in the
        context that inference shows.

        Raises UserError: what `check_messages` refuses; what the template itself refuses, or fails at; tool
        calls that it does not show; a turn that cannot be found in the rendering.
        """
        check_messages(conversation.messages)
        if not self._renderer.shows_answers:
            raise UserError("the chat template does not show what assistants say")
        messages = conversation.messages
        places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        whole, marks = self._renderer.text_and_marks(conversation, messages)
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
                    _, marks = self._renderer.text_and_marks(conversation, messages[: index + 1])
                    samples.append(Rendered(text[: turn[1]], _marked([turn], marks), True, bool(marks)))
        shown = whole if len(samples) == 1 else "".join(sample.text for sample in samples)
        return samples, [*notes, *self._rewritten(messages, shown)]

    def _turn(
        self, conversation: Conversation, index: int, whole: str, notes: list[str]
    ) -> tuple[str, int, int]:
        """Render up to an assistant's message, and return where in the text its turn starts and ends."""
        messages, render = conversation.messages, self._renderer.text
        text = whole if index == len(messages) - 1 else render(conversation, messages[: index + 1])
        start = prompt = render(conversation, messages[:index], add_generation_prompt=True)
        if not (self._renderer.has_prompt and text.startswith(prompt)):
            start = self._renderer.header(conversation, messages[:index])
            if not text.startswith(start):
                raise UserError(
                    f"the chat template renders message {index + 1} so that where the assistant's turn "
                    "starts cannot be told: it needs {% generation %} marks"
                )
            if self._renderer.has_prompt:
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

    def _unused(self, conversation: Conversation, whole: str, texts: list[tuple[int, str]]) -> list[str]:
        """Note what no rendering shows, neither of all messages nor up to any of the turns."""
        messages, tools, kwargs = conversation.messages, conversation.tools, conversation.kwargs
        render = self._renderer.text
        renderings = [(len(messages), whole), *((index + 1, text) for index, text in texts[:-1])]
        notes = []

        def same(other: Conversation) -> bool:
            return all(render(other, other.messages[:count]) == text for count, text in renderings)

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
            prompts = (render(one, before, add_generation_prompt=True) for one in (conversation, other))
            if same(other) and len(set(prompts)) == 1:
                notes.append(f"{name!r} in chat_template_kwargs, which changes nothing in the chat template")
        return notes

    @staticmethod
    def _rewritten(messages: Sequence[dict[str, Any]], text: str) -> list[str]:
        """Note the first role whose messages the text does not hold word for word."""
        return [
            f"messages of the {message['role']} that the chat template rewrites or leaves out in part: "
            "trained is what it renders"
            for message in messages
            if message["content"].strip() not in text
        ][:1]


def _marked(turns: list[tuple[int, int, int]], marks: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return the template's own marks instead of the turns, each with the number of its turn."""
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
