"""Prompts and answers become tokens, with what is trained marked: one definition for training and generation.

A template is "chat", the tokenizer's own chat template; "plain", the tokenizer's own encoding of the prompt
(with BOS where the tokenizer adds it); or one of `NAMED_TEMPLATES`, fixed text around the prompt. Generation
starts from the tokens that a trained pair begins with, except in the templates that end in -paper. Trained
tokens are marked by their position, never by their value: in many tokenizers pad, EOS and the end of a turn
are one token.

With "chat" the whole conversation is rendered by the template and encoded at once; `chat.py` finds the turns
in it. With the others a response is encoded by itself, and EOS follows. Where sentencepiece begins texts with
its dummy prefix "▁", such a response begins with it too, whatever the prompt ends with: a model's generation,
decoded by itself, is then the response to the character.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from megatron_probsft.data.store.turn_ends import marker_tokens
from megatron_probsft.data.text.chat import ChatTemplate, Conversation, Rendered
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES, check_template_name
from megatron_probsft.data.tokenizers.token_ids import token_ids
from megatron_probsft.data.tokenizers.token_places import with_places
from megatron_probsft.runtime.errors import UserError

Segments = list[tuple[list[int], int]]
"""A sample's tokens in parts, each with the number, from 1, of the assistant turn that it trains, or 0."""


def encode_prompt(tokenizer: Any, prompt: str, template: str, *, date: str | None = None) -> list[int]:
    """Return the token ids of one prompt, as `encode_prompts` does."""
    return encode_prompts(tokenizer, [prompt], template, date=date)[0]


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str], template: str, *, date: str | None = None
) -> list[list[int]]:
    """Return each prompt's token ids up to where generation starts, in one call of the tokenizer.

    The date is that of `ChatTemplate`. Raises UserError as `check_template` does.
    """
    check_template(tokenizer, template)
    if template == "chat":
        chat = ChatTemplate(tokenizer, date)
        texts = [chat.prompt(Conversation([{"role": "user", "content": prompt}])) for prompt in prompts]
        return token_ids(tokenizer, texts, rendered=True)
    if template in NAMED_TEMPLATES:
        named = NAMED_TEMPLATES[template]
        texts = map(named.generation_text, prompts)
        return token_ids(tokenizer, texts, add_special_tokens=named.tokenizer_adds_bos, rendered=True)
    return _trained_prompts(tokenizer, prompts, template)


def encode_pair(tokenizer: Any, prompt: str, response: str, template: str) -> tuple[list[int], list[bool]]:
    """Return a pair's tokens and, for each, whether it is trained.

    With "chat" as `encode_messages` of the two. Else the tokens are those of the prompt, those of the
    response, encoded by itself, and EOS; the response's and EOS are trained. Raises UserError as
    `check_template` does.
    """
    return _joined(encode_pairs(tokenizer, [prompt], [response], template)[0])


def encode_messages(
    tokenizer: Any, messages: Sequence[dict[str, Any]], template: str
) -> tuple[list[int], list[bool]]:
    """Return the tokens of a conversation that is one sample and, for each, whether it is trained.

    Every assistant turn is trained, with the tokens that end it but without white space after them. If the
    last message is an assistant's, the tokens end with it.

    Raises UserError: a template other than "chat"; what `ChatTemplate.samples` refuses; a conversation that
    is several samples.
    """
    check_template(tokenizer, template, conversations=True)
    samples, notes = ChatTemplate(tokenizer).samples(Conversation(messages))
    if len(samples) > 1:
        raise UserError(f"{len(samples)} samples instead of one: {'; '.join(notes)}")
    return _joined(encode_rendered(tokenizer, samples)[0][0])


def check_template(tokenizer: Any, template: str, *, conversations: bool = False) -> None:
    """Raise UserError unless this tokenizer can encode with this template."""
    check_template_name(template)
    if conversations and template != "chat":
        raise UserError(f"--template {template} takes prompt and response: messages need --template chat")
    if template == "chat":
        ChatTemplate(tokenizer)
    if template in NAMED_TEMPLATES:
        for token in NAMED_TEMPLATES[template].special_tokens():
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise UserError(
                    f"--template {template} needs {token}, which is no token of this tokenizer: use chat, "
                    "plain or a template of the model's own family"
                )
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token: set eos_token in its tokenizer_config.json")


def encode_pairs(
    tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], template: str
) -> list[Segments]:
    """Return each pair as a sample, in a few calls of the tokenizer for all of them.

    Joined they are what `encode_pair` gives.
    """
    check_template(tokenizer, template)
    if template == "chat":
        chat = ChatTemplate(tokenizer)
        pairs = map(conversation_of, prompts, responses)
        encoded = encode_rendered(tokenizer, [chat.samples(pair)[0][0] for pair in pairs])
        return [segments for segments, _ in encoded]
    return [
        [(start, 0), ([*end, tokenizer.eos_token_id], 1)]
        for start, end in zip(
            _trained_prompts(tokenizer, prompts, template), token_ids(tokenizer, responses), strict=True
        )
    ]


def conversation_of(prompt: str, response: str, system: str | None = None, **more: Any) -> Conversation:
    """Return a pair as a conversation."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return Conversation([{"role": "system", "content": system}, *messages] if system else messages, **more)


def encode_rendered(tokenizer: Any, samples: Sequence[Rendered]) -> list[tuple[Segments, bool]]:
    """Return the tokens of each text, encoded whole, and whether EOS was added; one call of the tokenizer.

    A token that reaches into a trained part is trained. Where a turn ends with no special token, nothing
    else would tell a model to stop: trained is the special token that follows, or EOS after the last turn.
    """
    markers, eos = marker_tokens(tokenizer), tokenizer.eos_token_id
    encoded = []
    for sample, (ids, spans) in zip(samples, with_places(tokenizer, samples), strict=True):
        if not sample.marked:
            spans = [(start, _stop(ids, end, markers), turn) for start, end, turn in spans]
        add_eos = sample.ends_with_turn and not sample.marked and ids[-1] not in markers
        encoded.append((_segments(ids, spans) + [([eos], spans[-1][2])] * add_eos, add_eos))
    return encoded


def _stop(ids: list[int], end: int, markers: set[int]) -> int:
    """Return where a turn ends: after the special token that follows, if it ends with none itself."""
    follows = end < len(ids) and ids[end] in markers and ids[end - 1] not in markers
    return end + follows


def _segments(ids: list[int], spans: list[tuple[int, int, int]]) -> Segments:
    segments, done = [], 0
    for start, end, turn in spans:
        start = max(start, done)  # a token may reach from one part into the next
        segments += [(ids[done:start], 0), (ids[start:end], turn)]
        done = max(done, end)
    segments.append((ids[done:], 0))
    return [segment for segment in segments if segment[0]]


def _joined(segments: Segments) -> tuple[list[int], list[bool]]:
    tokens, marks = zip(*((tokens, [turn > 0] * len(tokens)) for tokens, turn in segments), strict=True)
    return list(itertools.chain(*tokens)), list(itertools.chain(*marks))


def _trained_prompts(tokenizer: Any, prompts: Sequence[str], template: str) -> list[list[int]]:
    if template in NAMED_TEMPLATES:
        texts = map(NAMED_TEMPLATES[template].training_text, prompts)
        return token_ids(tokenizer, texts, rendered=True)
    ids = token_ids(tokenizer, prompts, add_special_tokens=True)
    appended = _appended(tokenizer)
    return [one[: len(one) - appended] for one in ids]


def _appended(tokenizer: Any) -> int:
    """Count the special tokens (EOS) that the tokenizer puts after a text: generation starts before them."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask[::-1].index(0) if 0 in mask else 0
