"""What a server, by transformers' AutoTokenizer, makes of a folder's tokenizer, beside what is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, add_record, fit_for_servers
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.data.tokenizers.served import ServedTokenizer, served_tokenizer
from megatron_probsft.data.tokenizers.trial import readings_of, trial_texts
from tests.support.real_tokenizers import REAL_TOKENIZERS, need_real_tokenizer
from tests.support.sizes import rows
from tests.support.tiny_models import save_tiny_tokenizer
from tests.unit.data.test_tokenizers import save_sentencepiece


@pytest.mark.parametrize(
    "name", rows(REAL_TOKENIZERS, fast=["smollm2"], rare=["qwen3", "llama3", "llama3.1", "mistral"])
)
def test_exports_of_real_tokenizers_are_read_as_trained(name: str, tmp_path: Path) -> None:
    """Those with a tokenizer.json; of the others a difference is said."""
    folder = tmp_path / "export"
    shutil.copytree(need_real_tokenizer(name), folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text("{}")
    tokenizer = load_tokenizer(folder)
    expected = readings_of(tokenizer, trial_texts())
    served = served_tokenizer(tokenizer, folder)
    add_record(folder, TrainedTurns("chat", {}, None, None, served.named))
    fit_for_servers(folder)
    found = readings_of(AutoTokenizer.from_pretrained(folder), [one.text for one in expected])
    assert (found == expected) == (served.difference is None)
    if (folder / "tokenizer.json").exists():
        assert served.difference is None


def test_a_tokenizer_that_is_read_as_it_is_stays(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path)
    assert served_tokenizer(tokenizer, tmp_path) == ServedTokenizer(None, None)


def test_sentencepiece_alone_is_read_otherwise_which_is_said(tmp_path: Path) -> None:
    folder = save_sentencepiece(tmp_path / "model")
    served = served_tokenizer(load_tokenizer(folder), folder)
    assert served.named is None
    assert served.difference is not None
    assert " becomes [" in served.difference


def test_a_class_of_the_folders_own_code(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert served_tokenizer(tokenizer, tmp_path) == ServedTokenizer("PreTrainedTokenizerFast", None)


def test_a_folder_that_transformers_cannot_open(tmp_path: Path) -> None:
    folder = save_sentencepiece(
        tmp_path / "model", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": "a.B"}}
    )
    served = served_tokenizer(load_tokenizer(folder), folder)
    assert served.named is None
    assert served.difference is not None
    assert served.difference == "it fails with ValueError"
