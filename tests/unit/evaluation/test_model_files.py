"""What ends a generation: an export's own stops, and the end of a turn of a base model that lists another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, add_record
from megatron_probsft.evaluation.model_files import ends_of_turn, load_model_files, stop_tokens
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import save_tiny_tokenizer

SPECIAL = ["<|eot_id|>", "<|user|>", "<end_of_turn>", "[/INST]"]
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}"
)
GLM = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"  # the next question is the end
GEMMA = "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }} <end_of_turn>\n{% endfor %}"
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
ONE_ANSWER = (
    "{% if messages | length > 2 %}{{ raise_exception('one answer only') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}<|im_end|>"
NO_ANSWERS = "{% for m in messages %}{{ m.role if m.role == 'user' else raise_exception('no') }}{% endfor %}"
FAULTY = "{{ messages[1].content + 1 }}<|im_end|>"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    found = save_tiny_tokenizer(tmp_path)
    found.add_special_tokens({"eos_token": "<|endoftext|>", "extra_special_tokens": ["<|im_end|>", *SPECIAL]})
    return found


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("qwen-boxed", "<|im_end|>"), ("llama-math-paper", "<|eot_id|>"), ("deepseek-math", None),
        ("chat", "<|im_end|>"), ("plain", None), ("qwen-figlet", "<|im_end|>"),
    ],
)  # fmt: skip
def test_ends_of_turn(tokenizer: Any, template: str, end: str | None) -> None:
    assert ends_of_turn(tokenizer, template) == ({tokenizer.convert_tokens_to_ids(end)} if end else set())


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (LLAMA3, "<|eot_id|>"), (GLM, "<|user|>"), (GEMMA, "<end_of_turn>"), (MISTRAL, "<|endoftext|>"),
        (ONE_ANSWER, "<|im_end|>"), (NO_END, None), (NO_ANSWERS, None), (FAULTY, None),
    ],
)  # fmt: skip
def test_any_chat_template_shows_its_end_of_a_turn(tokenizer: Any, source: str, end: str | None) -> None:
    tokenizer.chat_template = source
    assert ends_of_turn(tokenizer, "chat") == ({tokenizer.convert_tokens_to_ids(end)} if end else set())


def test_a_token_that_the_tokenizer_has_not(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path)
    assert ends_of_turn(tokenizer, "llama-math-paper") == set()  # <|eot_id|> is text to it


def base_model(folder: Path, generation: Any) -> Path:
    """EOS is <|endoftext|>, 0; the ChatML template ends turns with <|im_end|>, 2."""
    LlamaConfig(eos_token_id=0, vocab_size=331).save_pretrained(folder)
    tokenizer = save_tiny_tokenizer(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def stops(folder: Path, template: str = "chat") -> list[int]:
    tokenizer, _, ends = load_model_files(folder)
    return stop_tokens(folder, tokenizer, template, ends)


def test_a_base_model_stops_at_its_templates_end_of_a_turn_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base_model(tmp_path, {"eos_token_id": [0]})
    assert stops(folder) == [0, 2]
    assert (
        "generations stop at <|im_end|> too, which ends a turn in --template chat" in capsys.readouterr().out
    )
    assert stops(folder, "plain") == [0]
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert stops(folder) == [0, 2, 5]  # 0 is the tokenizer's
    assert capsys.readouterr().out == ""


def test_an_export_stops_where_a_server_stops_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base_model(tmp_path, {"eos_token_id": 0})
    add_record(folder, TrainedTurns("qwen-boxed", {"<|endoftext|>": 0}, None))
    assert stops(folder, "qwen-boxed") == stops(folder) == [0]
    add_record(folder, TrainedTurns("chat", {"<|im_end|>": 2}, None))
    assert stops(folder) == [0, 2]
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 0}'
    )  # a faulty export is not mended here
    assert stops(folder) == [0]
    assert capsys.readouterr().out == ""


def test_what_a_server_reads(tmp_path: Path) -> None:
    folder = base_model(tmp_path, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [4, 6]}))
    assert load_model_files(folder)[2] == [0, 4, 6]  # the config's, where nothing else says it
    (folder / "generation_config.json").write_text("{}")
    assert load_model_files(folder)[2] == [0]
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json is not valid JSON"):
        load_model_files(folder)
