"""An exported folder says how its turns end; nothing else in it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from megatron_probsft.checkpoint.hf.trained_turns import (
    TrainedTurns,
    add_record,
    fit_for_servers,
    generation_ends,
    read_record,
)
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import save_tiny_tokenizer

TURNS = TrainedTurns("chat", {"<|im_end|>": 2}, None)


def folder_with(tmp_path: Path, generation: Any, config: Any = None) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config or {"model_type": "llama", "eos_token_id": 7}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def generation_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"eos_token_id": 0}, [0, 2]),
        ({"eos_token_id": [5, 0]}, [5, 0, 2]),
        ({"eos_token_id": 2}, 2),  # nothing new: the file stays as it came
        ({"eos_token_id": [2, 0]}, [2, 0]),
        ({"temperature": 0.6, "do_sample": True, "pad_token_id": 3}, [7, 2]),  # 7 is config.json's
        ({"eos_token_id": None}, [7, 2]),
    ],
)
def test_the_union_with_what_was_there(tmp_path: Path, before: dict[str, Any], after: Any) -> None:
    folder = folder_with(tmp_path, before)
    content = (folder / "generation_config.json").read_bytes()
    config = (folder / "config.json").read_bytes()
    add_record(folder, TURNS)
    assert generation_of(folder) == before | {"eos_token_id": after}
    if before.get("eos_token_id") == after:
        assert (folder / "generation_config.json").read_bytes() == content
    assert GenerationConfig.from_pretrained(folder).eos_token_id == after
    assert (folder / "config.json").read_bytes() == config
    once = (folder / "generation_config.json").read_bytes()
    add_record(folder, TURNS)
    assert (folder / "generation_config.json").read_bytes() == once


def test_a_folder_without_the_file_gets_what_a_server_would_have_read_from_the_config(tmp_path: Path) -> None:
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": [7, 8], "vocab_size": 331}
    folder = folder_with(tmp_path, None, config)
    assert generation_ends(folder) is None
    add_record(folder, TURNS)
    assert generation_of(folder) == {"bos_token_id": 1, "eos_token_id": [7, 8, 2]}
    assert generation_ends(folder) == [7, 8, 2]


def test_ends_add_up_from_run_to_run(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"eos_token_id": 0})
    assert read_record(folder) is None
    add_record(folder, TURNS)
    add_record(folder, TrainedTurns("plain", {"<|endoftext|>": 0}, None))
    add_record(folder, TrainedTurns("plain", {"<end>": 4}, None))
    ends = {"<|im_end|>": 2, "<|endoftext|>": 0, "<end>": 4}
    assert read_record(folder) == TrainedTurns("plain", ends, None)
    assert generation_ends(folder) == [0, 2, 4]


@pytest.mark.parametrize("old", ["in tokenizer_config.json", "in the file", "several", "none"])
def test_the_chat_template_takes_the_place_of_every_other_one(tmp_path: Path, old: str) -> None:
    folder = folder_with(tmp_path, None)
    tokenizer = save_tiny_tokenizer(folder)
    if old == "several":
        tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    if old == "none":
        tokenizer.chat_template = None
        (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder, save_jinja_files=old != "in tokenizer_config.json")
    if old == "in tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    before = json.loads((folder / "tokenizer_config.json").read_text())
    assert bool(before.get("chat_template")) == (old == "in tokenizer_config.json")
    source = "{{ 'é' }}{{ messages[0]['content'] }}"
    add_record(folder, TrainedTurns("qwen-boxed", {}, source))
    fit_for_servers(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == source
    after = json.loads((folder / "tokenizer_config.json").read_text())
    assert after == before | ({"chat_template": source} if "chat_template" in before else {})

    (folder / "chat_template.jinja").write_text("{{ 'of the user' }}")  # later: nothing takes it away again
    fit_for_servers(folder)
    assert (folder / "chat_template.jinja").read_text() == "{{ 'of the user' }}"


def test_a_model_that_was_not_trained_here_is_left_alone(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"eos_token_id": 0})
    save_tiny_tokenizer(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    fit_for_servers(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"eos_token_id": ', "generation_config.json is not valid JSON"),
        ("[]", "generation_config.json must hold a JSON object"),
        ('{"eos_token_id": "</s>"}', "eos_token_id must be a token's id or a list of them, got '</s>'"),
        (
            '{"eos_token_id": [1, null]}',
            r"eos_token_id must be a token's id or a list of them, got \[1, None\]",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    folder = folder_with(tmp_path, None)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        generation_ends(folder)
    (folder / "trained_turns.json").write_text('{"template": "chat"}')
    with pytest.raises(UserError, match=r"trained_turns\.json is damaged"):
        read_record(folder)
