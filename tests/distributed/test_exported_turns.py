"""Checkpoints and exports say where turns were trained to end, and how a server is to ask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, read_record
from megatron_probsft.data.text.templates import encode_prompt
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.tiny_models import save_tiny_model, save_tiny_tokenizer
from tests.support.training_runs import config_for, train, write_pairs

BYTE_LEVEL = Path(__file__).parents[1] / "data" / "byte_level_llama_tokenizer"
END_OF_TEXT, IM_START, IM_END = 0, 1, 2
GENERATION = {"temperature": 0.6, "eos_token_id": IM_START, "max_new_tokens": 77}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: its tokenizer's EOS is <|endoftext|>, its ChatML ends turns with <|im_end|>."""
    folder = save_tiny_model(tmp_path_factory.mktemp("base") / "llama", layers=1)
    tokenizer = save_tiny_tokenizer(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    turns = [("user", "what is one?"), ("assistant", "it is"), ("user", "and two?"), ("assistant", "three")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    file.write_text((json.dumps(row) + "\n") * 9)
    return file


def _to_hf(run: Path, target: Path) -> None:
    distributed.initialize()
    megatron_to_hf(run, target)


def _to_megatron(hf: Path, run: Path) -> None:
    distributed.initialize()
    hf_to_megatron(hf, run)


def side_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".safetensors"}


def eos_of(folder: Path) -> Any:
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings | {"eos_token_id": IM_START} == GENERATION
    return settings["eos_token_id"]


def test_every_way_out_carries_the_trained_ends(
    base: Path, conversations: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exports = str(tmp_path / "exports")
    settings: dict[str, Any] = {"save_hf": exports, "save_hf_at_each_save": True, "save_interval": 2}
    train(2, config_for(tmp_path / "run", base, conversations, **settings))
    assert "trained turns end with" in (said := capfd.readouterr().out)
    assert said.count("trained turns end with") == 1
    run_ranks(1, _to_hf, tmp_path / "run", tmp_path / "converted")
    folders = [tmp_path / "run" / "iter_0000002" / "hf", tmp_path / "run" / "iter_0000003" / "hf"]
    folders += [tmp_path / "exports" / "iter_0000002", tmp_path / "exports" / "iter_0000003"]
    for folder in [*folders, tmp_path / "converted"]:
        eos = eos_of(folder)
        assert eos[0] == IM_START  # the model's own, first as it was
        assert IM_END in eos
        assert set(eos) <= {IM_START, IM_END, END_OF_TEXT}
        record = read_record(folder)
        assert record is not None
        assert set(record.ends.values()) == set(eos) - {IM_START}
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (folder / name).read_bytes() == (base / name).read_bytes(), name


def test_a_resumed_run_on_other_data_adds_its_ends(base: Path, conversations: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    run = tmp_path / "run"
    first: dict[str, Any] = {"template": "plain", "save_optim": True, "exit_interval": 1}
    train(1, config_for(run, base, pairs, **first))
    assert eos_of(run / "iter_0000001" / "hf") == [IM_START, END_OF_TEXT]
    again: dict[str, Any] = {"load": str(run), "save_optim": True, "allow_changed": ["data"]}
    train(1, config_for(run, None, conversations, save_hf=str(tmp_path / "export"), **again))
    assert eos_of(tmp_path / "export") == [IM_START, END_OF_TEXT, IM_END]


def test_a_named_template_becomes_the_exports_chat_template_and_is_no_other_data(
    base: Path, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    run = tmp_path / "run"
    settings: dict[str, Any] = {"template": "qwen-boxed", "save_optim": True}
    train(1, config_for(run, base, pairs, exit_interval=1, **settings))
    train(1, config_for(run, None, pairs, load=str(run), save_hf=str(tmp_path / "export"), **settings))
    run_ranks(1, _to_hf, run, tmp_path / "converted")
    assert side_files(tmp_path / "export") == side_files(tmp_path / "converted")
    expected = encode_prompt(load_tokenizer(base), "one and two?", "qwen-boxed")
    chat = [{"role": "user", "content": "one and two?"}]
    for folder in (tmp_path / "export", tmp_path / "converted"):
        served = AutoTokenizer.from_pretrained(folder)
        assert served.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == expected
        assert eos_of(folder) == [IM_START, END_OF_TEXT]
        assert read_record(folder) == TrainedTurns("qwen-boxed", {"<|endoftext|>": END_OF_TEXT}, None)

    # There and back without training: exact, whatever was done to the export meanwhile.
    (tmp_path / "export" / "chat_template.jinja").write_text("{{ 'mine' }}")
    run_ranks(1, _to_megatron, tmp_path / "export", tmp_path / "megatron")
    run_ranks(1, _to_hf, tmp_path / "megatron", tmp_path / "back")
    assert side_files(tmp_path / "back") == side_files(tmp_path / "export")


def test_a_tokenizer_that_servers_would_misread_is_read_as_trained(tmp_path: Path) -> None:
    """In the form of DeepSeek's: the class that its files name loses every space."""
    folder = save_tiny_model(tmp_path / "model", layers=1, vocab_size=400)
    for file in folder.glob("*token*"):
        file.unlink()
    for file in BYTE_LEVEL.iterdir():
        shutil.copyfile(file, folder / file.name)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    config = config_for(
        tmp_path / "run", folder, pairs, template="plain", save_hf=str(tmp_path / "export"), train_iters=1,
        lr_warmup_iters=0,
    )  # fmt: skip
    train(1, config)
    run_ranks(1, _to_hf, tmp_path / "run", tmp_path / "converted")
    text = "What is the sum of 1 and 2?"
    ids = Tokenizer.from_file(str(BYTE_LEVEL / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] != ids
    for export in (tmp_path / "export", tmp_path / "converted"):
        assert AutoTokenizer.from_pretrained(export)(text)["input_ids"] == ids
        settings = json.loads((export / "tokenizer_config.json").read_text())
        before = json.loads((BYTE_LEVEL / "tokenizer_config.json").read_text())
        assert settings == before | {"tokenizer_class": "PreTrainedTokenizerFast"}
        assert (export / "tokenizer.json").read_bytes() == (BYTE_LEVEL / "tokenizer.json").read_bytes()
    assert side_files(tmp_path / "export") == side_files(tmp_path / "converted")


def test_a_run_of_no_steps_changes_nothing(base: Path, conversations: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr_warmup_iters": 0, "save_hf": str(tmp_path / "out")}
    train(1, config_for(tmp_path / "run", base, conversations, train_iters=0, **settings))
    assert side_files(tmp_path / "out") == side_files(base)


def test_a_damaged_generation_config_is_refused_before_work_starts(
    base: Path, conversations: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(UserError, match=r"generation_config\.json is not valid JSON"):
        train(1, config_for(tmp_path / "run", folder, conversations))
    assert not (tmp_path / "run").exists()
