"""A model's Hugging Face folder: tokenizer, config, what ends a generation, and the date of its template."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from megatron_probsft.checkpoint.hf.trained_turns import generation_ends, read_record
from megatron_probsft.data.store.turn_ends import marker_tokens
from megatron_probsft.data.text.chat_source import prints_the_date
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object


def load_model_files(model: Path) -> tuple[Any, Any, list[int]]:
    """Tokenizer, text config and the tokens at which a server stops, of a Hugging Face folder.

    Raises UserError: transformers, or the tokenizers library, refuses it.
    """
    read_json_object(model / "config.json")
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config class has checks, and errors, of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--model {model} cannot be loaded: {reason}") from None
    tokenizer = load_tokenizer(model)
    ends = generation_ends(model)
    if ends is None:
        of_config = config.eos_token_id
        ends = of_config if isinstance(of_config, list) else [of_config]
    stops = {tokenizer.eos_token_id, *ends} - {None}
    return tokenizer, config.get_text_config(), sorted(stops)


def stop_tokens(model: Path, tokenizer: Any, template: str, ends: Sequence[int]) -> list[int]:
    """The tokens at which generations stop: `ends`, as on any server that has the folder.

    A model that was not trained here, say a base model, may not know yet that its prompt's turns end with
    another token: then at that one too, and a line says so.
    """
    if read_record(model) is not None:
        return sorted(ends)
    more = sorted(ends_of_turn(tokenizer, template) - set(ends))
    if more:
        named = " and ".join(tokenizer.convert_ids_to_tokens(more))
        print(
            f"generations stop at {named} too, which ends a turn in --template {template}; {model} does not "
            "list it in generation_config.json, so that a server goes on",
            flush=True,
        )
    return sorted({*ends, *more})


def ends_of_turn(tokenizer: Any, template: str) -> set[int]:
    """The token that ends a turn in the template; what follows it is no answer, but made-up conversation.

    It is the special token right after what was said: an answer, where the template renders one.
    """
    if template == "chat":
        after = _after_an_answer(tokenizer)
    else:
        after = NAMED_TEMPLATES[template].generated.after if template in NAMED_TEMPLATES else ""
        after = after[after.find("<") :] if "<" in after else ""  # what is asked for stands before it
    ids = tokenizer(after.lstrip(), add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return set(ids[:1]) & marker_tokens(tokenizer)


def _after_an_answer(tokenizer: Any) -> str:
    """The text that the chat template renders from an answer to the next question; empty if it refuses."""
    question, answer, next_one = "What is two and two?", "Certainly: four.", "And three and three?"
    turns = [("user", question), ("assistant", answer), ("user", next_one)]
    messages = [{"role": role, "content": content} for role, content in turns]
    for chat in (messages, messages[:2]):
        with contextlib.suppress(Exception):  # a template raises what it likes
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            return text.partition(answer)[2].partition(next_one)[0]
    return ""


def template_date(model: Path, tokenizer: Any, template: str, unfinished: str | None) -> str | None:
    """The date that the chat template is to show as today's; None where it shows none.

    It is the date that the model was trained with here, else that on which the unfinished evaluation began,
    else today's.
    """
    if template != "chat" or not prints_the_date(tokenizer):
        return None
    record = read_record(model)
    return (record and record.date) or unfinished or datetime.date.today().isoformat()
