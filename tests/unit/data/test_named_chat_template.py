"""A named template as a chat template of a folder: a server's tokens are those of training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, add_record, fit_for_servers
from megatron_probsft.data.text.named_chat_template import named_chat_template
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.text.templates import encode_pair, encode_prompt
from tests.unit.domains.test_templates import tokenizer_of

PROMPTS = ["What is\n\\frac{1}{2} + 'one' \"two\"?", "", " é{{ x }}{% if %}｜日本 ", "one<|im_end|>\n\ttwo"]


def family(name: str) -> str:
    return next((family for family in ("llama", "deepseek") if family in name), "chatml")


def served_with(name: str, folder: Path) -> tuple[Any, Any]:
    """(the tokenizer of training, that of the exported folder)."""
    tokenizer = tokenizer_of(family(name), folder)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    add_record(folder, TrainedTurns(name, {}, named_chat_template(tokenizer, name)))
    fit_for_servers(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_servers_tokens_are_those_of_the_template(name: str, tmp_path: Path) -> None:
    tokenizer, served = served_with(name, tmp_path)
    for prompt in PROMPTS:
        found = served.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        assert found == encode_prompt(tokenizer, prompt, name)
    chat = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": "it is\n three"}]
    tokens, _ = encode_pair(tokenizer, PROMPTS[0], "it is\n three", name)
    assert served.apply_chat_template(chat, tokenize=False) == tokenizer.decode(tokens)


@pytest.mark.parametrize("name", ["qwen-boxed", "llama-math-paper"])
def test_what_was_not_trained_is_refused(name: str, tmp_path: Path) -> None:
    _, served = served_with(name, tmp_path)
    user, answer = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "one"}
    system = {"role": "system", "content": "be kind"}
    parts = {"role": "user", "content": [{"type": "text", "text": "one?"}]}
    for chat in ([system, user], [user, user], [user, answer, user], [answer], [user, answer], [parts]):
        with pytest.raises(TemplateError, match=f"trained with --template {name}: give one user message"):
            served.apply_chat_template(chat, add_generation_prompt=True)
