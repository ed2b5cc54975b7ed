"""A model's Hugging Face folder: tokenizer, config, what ends a generation, and prompts as tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from megatron_probsft.data.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.templates import check_template, encode_prompt
from megatron_probsft.data.tokenizers import load_tokenizer
from megatron_probsft.evaluation.problems import Problem
from megatron_probsft.runtime.errors import UserError

_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>")  # of ChatML and Llama 3: no EOS of their base models


def load_model_files(model: Path) -> tuple[Any, Any, list[int]]:
    """Tokenizer, text config and the tokens that end the model's texts, of a Hugging Face folder.

    Raises UserError: transformers, or the tokenizers library, refuses it.
    """
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    settings = model / "generation_config.json"
    ends = json.loads(settings.read_text()).get("eos_token_id") if settings.is_file() else config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return tokenizer, config.get_text_config(), sorted(stops)


def ends_of_turn(tokenizer: Any, template: str) -> set[int]:
    """The tokens that end a turn in the template: what follows is no answer, but made-up conversation.

    A base model, whose EOS is another, may well write them: its prompt shows how turns end.
    """
    if template == "chat":
        text = str(tokenizer.chat_template)
    else:
        text = NAMED_TEMPLATES[template].generation_text("") if template in NAMED_TEMPLATES else ""
    ids = {tokenizer.convert_tokens_to_ids(token) for token in _ENDS_OF_TURN if token in text}
    return ids - {None, tokenizer.unk_token_id}


def encode(
    tokenizer: Any,
    problems: Sequence[Problem],
    template: str,
    max_new_tokens: int,
    max_model_len: int | None,
    positions: int | None,
) -> tuple[list[list[int]], list[int]]:
    """Token ids of every prompt, and how many may follow each: `max_new_tokens`, or as many as have room."""
    check_template(tokenizer, template)
    if max_model_len and positions and max_model_len > positions:
        raise UserError(f"--max-model-len {max_model_len} exceeds the model's {positions} positions")
    room = max_model_len or positions
    prompts = [encode_prompt(tokenizer, problem.prompt, template) for problem in problems]
    for problem, tokens in zip(problems, prompts, strict=True):
        if not tokens:
            raise UserError(f"{problem.where}: the prompt is empty")
        if room and len(tokens) >= room:
            limit = f"--max-model-len {room}" if max_model_len else f"the model's {room} positions"
            raise UserError(f"{problem.where}: {len(tokens)} prompt tokens leave no room in {limit}")
    return prompts, [min(max_new_tokens, room - len(one)) if room else max_new_tokens for one in prompts]
