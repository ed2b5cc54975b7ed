"""Text to tokens and back to what is trained: one definition for training and for generation.

A template is "chat", the tokenizer's own chat template; "plain", the tokenizer's own encoding of the prompt
(with BOS where the tokenizer adds it); or one of `NAMED_TEMPLATES`, fixed text around the prompt. What is
generated from is what a pair begins with, but in the templates that end in -paper. What is trained is told by
position, never by token value: in many tokenizers pad, EOS and the end of a turn are one token.

A response is encoded by itself. Where sentencepiece begins a text with its dummy prefix "▁", so begins the
response, whatever the prompt ends with: what a model generates, decoded by itself, is then the response to
the character, and both decoded together have one space between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from megatron_probsft.data.named_templates import NAMED_TEMPLATES, check_template_name
from megatron_probsft.runtime.errors import UserError

_ROLES = ("system", "user", "assistant", "tool")


def encode_prompt(tokenizer: Any, prompt: str, template: str) -> list[int]:
    """Token ids up to where generation starts. Raises UserError as `check_template` does."""
    check_template(tokenizer, template)
    if template in NAMED_TEMPLATES:
        named = NAMED_TEMPLATES[template]
        text = [named.generation_text(prompt)]
        return _token_ids(tokenizer, text, add_special_tokens=named.tokenizer_adds_bos, rendered=True)[0]
    return _trained_prompts(tokenizer, [prompt], template)[0]


def encode_pair(tokenizer: Any, prompt: str, response: str, template: str) -> tuple[list[int], list[bool]]:
    """Tokens and, for each, whether it is trained.

    The tokens are those of the prompt, those of the response, encoded by itself, and EOS; the response's and
    EOS are trained: len(response tokens) + 1 of them. Raises UserError as `check_template` does.
    """
    return _joined(encode_pairs(tokenizer, [prompt], [response], template)[0])


def encode_messages(
    tokenizer: Any, messages: Sequence[dict[str, Any]], template: str
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation and, for each, whether it is trained.

    Every assistant turn is trained, with the tokens that end it but without white space after them. If the
    last message is an assistant's, the tokens end with it and EOS, as those of `encode_pair` do.

    Raises UserError: unknown role, content that is no string or an empty assistant turn, no assistant turn
    or it comes first, a template other than "chat", and what the chat template itself refuses.
    """
    check_template(tokenizer, template, conversations=True)
    return _joined(encode_segments(tokenizer, [split_messages(tokenizer, messages)])[0])


def check_template(tokenizer: Any, template: str, *, conversations: bool = False) -> None:
    """UserError unless this tokenizer can encode with this template."""
    check_template_name(template)
    if conversations and template != "chat":
        raise UserError(f"--template {template} takes prompt and response: messages need --template chat")
    if template == "chat":
        try:
            tokenizer.get_chat_template()
        except ValueError:
            raise UserError("the tokenizer has no (default) chat template: use --template plain") from None
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
) -> list[list[tuple[list[int], bool]]]:
    """Each pair as segments, (tokens, trained); one call of the tokenizer for all prompts, one for responses.

    Joined they are what `encode_pair` gives.
    """
    check_template(tokenizer, template)
    return [
        [(start, False), ([*end, tokenizer.eos_token_id], True)]
        for start, end in zip(
            _trained_prompts(tokenizer, prompts, template), _token_ids(tokenizer, responses), strict=True
        )
    ]


def split_messages(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """A conversation as (text, trained) segments; a trained last one is to be followed by EOS."""
    _check_messages(messages)
    segments: list[tuple[str, bool]] = []
    done = ""  # what the segments hold so far, as the template renders it
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        [prompt] = _render(tokenizer, [messages[:index]], add_generation_prompt=True)
        segments.append((_after(done, prompt), False))
        if index == len(messages) - 1:
            return [*segments, (message["content"], True)]
        done = _render(tokenizer, [messages[: index + 1]])[0].rstrip()
        segments.append((_after(prompt, done), True))
    return [*segments, (_after(done, _render(tokenizer, [messages])[0]), False)]


def encode_segments[Mark](
    tokenizer: Any, conversations: Sequence[Sequence[tuple[str, Mark]]]
) -> list[list[tuple[list[int], Mark]]]:
    """Each segment's tokens instead of its text; its mark stays (`split_messages`: whether it is trained).

    Two calls of the tokenizer. A last segment whose mark is true is a response; EOS follows and carries it.
    """
    rendered = [
        text if index == 0 else _after_another(tokenizer, text)
        for segments in conversations
        for index, (text, _) in enumerate(segments[:-1] if segments[-1][1] else segments)
    ]
    rendered_ids = iter(_token_ids(tokenizer, rendered, rendered=True))
    response_ids = iter(_token_ids(tokenizer, [s[-1][0] for s in conversations if s[-1][1]]))
    return [
        [
            ([*next(response_ids), tokenizer.eos_token_id], mark)
            if mark and index == len(segments) - 1
            else (next(rendered_ids), mark)
            for index, (_, mark) in enumerate(segments)
        ]
        for segments in conversations
    ]


def _joined[Mark](segments: Iterable[tuple[list[int], Mark]]) -> tuple[list[int], list[Mark]]:
    tokens, marks = zip(*((tokens, [mark] * len(tokens)) for tokens, mark in segments), strict=True)
    return list(itertools.chain(*tokens)), list(itertools.chain(*marks))


def _after_another(tokenizer: Any, text: str) -> str:
    """A later part of a rendering, where sentencepiece's dummy prefix is the space that it begins with."""
    return text[1:] if text.startswith(" ") and getattr(tokenizer, "dummy_prefix", False) else text


def _trained_prompts(tokenizer: Any, prompts: Sequence[str], template: str) -> list[list[int]]:
    if template == "chat":
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return _token_ids(tokenizer, _render(tokenizer, chats, add_generation_prompt=True), rendered=True)
    if template in NAMED_TEMPLATES:
        texts = map(NAMED_TEMPLATES[template].training_text, prompts)
        return _token_ids(tokenizer, texts, rendered=True)
    ids = _token_ids(tokenizer, prompts, add_special_tokens=True)
    appended = _appended(tokenizer)
    return [one[: len(one) - appended] for one in ids]


def _appended(tokenizer: Any) -> int:
    """How many special tokens (EOS) the tokenizer puts after a text: generation starts before them."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask[::-1].index(0) if 0 in mask else 0


def _token_ids(
    tokenizer: Any, texts: Iterable[str], *, add_special_tokens: bool = False, rendered: bool = False
) -> list[list[int]]:
    """With `rendered`, special tokens that the text spells are tokens; else as the tokenizer has it."""
    texts = list(texts)
    if not texts:
        return []
    split = False if rendered else tokenizer.split_special_tokens
    if type(tokenizer)._encode_plus is TokenizersBackend._encode_plus:
        # what that does, without the offsets in the text, which cost about a quarter of the time
        library = tokenizer.backend_tokenizer
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = split
        return [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]
    return tokenizer(
        texts, add_special_tokens=add_special_tokens, split_special_tokens=split,
        return_attention_mask=False, verbose=False,
    )["input_ids"]  # fmt: skip


def _render(
    tokenizer: Any, chats: Sequence[Sequence[dict[str, Any]]], *, add_generation_prompt: bool = False
) -> list[str]:
    try:
        return tokenizer.apply_chat_template(
            [list(chat) for chat in chats], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise UserError(f"the chat template refuses the messages: {str(error).splitlines()[0]}") from None


def _after(start: str, text: str) -> str:
    if not text.startswith(start):
        raise UserError(
            "the chat template renders an earlier turn differently once later turns follow: "
            "split the conversation into samples that end with the assistant turn to train"
        )
    return text[len(start) :]


def _check_messages(messages: Sequence[dict[str, Any]]) -> None:
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise UserError(f"message {number} has the role {role!r}: use one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"message {number} has content of type {type(content).__name__}, not a string")
        if role == "assistant" and not content:
            raise UserError(f"message {number} is an empty assistant turn")
    if messages and messages[0]["role"] == "assistant":
        raise UserError("message 1 is an assistant turn: start with a system or user message")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("there is no assistant turn to train on")
