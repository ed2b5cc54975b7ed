"""A chat template that prints today's date prints the day on which the run began, whenever it goes on."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.evaluation import model_files
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.start import inputs, resume
from tests.support.training_runs import config_for, records, train, write_pairs

TEMPLATE = Path(__file__).parents[1] / "data" / "templates" / "prints_todays_date.jinja"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "train.jsonl", 20)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
    return folder


def on(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    today = SimpleNamespace(date=SimpleNamespace(today=lambda: datetime.date.fromisoformat(day)))
    monkeypatch.setattr(inputs, "datetime", today)
    monkeypatch.setattr(model_files, "datetime", today)


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in records(folder, "train")]


@pytest.mark.size("test")
def test_resumed_on_another_day(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"save_optim": True, "train_iters": 5}
    on(monkeypatch, "2026-01-31")
    train(1, config_for(tmp_path / "whole", model, data, **settings))
    run = tmp_path / "parts"
    export = {"save_hf": str(tmp_path / "hf")}
    train(1, config_for(run, model, data, exit_interval=2, **settings, **export))
    on(monkeypatch, "2026-02-01")
    shutil.rmtree(data.with_suffix(".cache"))
    train(1, config_for(run, None, data, load=str(run), **settings, **export))
    assert losses(run) == losses(tmp_path / "whole")
    # Another run on that day trains on its own date, and so does not have the same losses.
    train(1, config_for(tmp_path / "later", model, data, **settings))
    assert losses(tmp_path / "later") != losses(run)

    # The evaluation shows what was trained, that of the base model the day on which it began.
    exported, base = tmp_path / "hf", model
    tokenizer = load_tokenizer(exported)
    assert model_files.template_date(exported, tokenizer, "chat", None) == "2026-01-31"
    assert model_files.template_date(base, tokenizer, "chat", None) == "2026-02-01"
    assert model_files.template_date(base, tokenizer, "chat", "2026-01-07") == "2026-01-07"
    assert model_files.template_date(base, tokenizer, "plain", None) is None


def test_the_flag_says_which_day(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "2026-01-31")
    train(1, config_for(tmp_path / "a", model, data, template_date="2026-02-01"))
    on(monkeypatch, "2026-02-01")
    train(1, config_for(tmp_path / "b", model, data))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_libraries_that_give_other_tokens_are_found(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files and settings, whose tokens are no longer the same."""
    run, settings = tmp_path / "run", {"save_optim": True, "train_iters": 5}
    train(1, config_for(run, model, data, exit_interval=2, **settings))
    [store] = [folder for folder in data.with_suffix(".cache").iterdir() if (folder / "about.json").is_file()]
    about = json.loads((store / "about.json").read_text())
    (store / "about.json").write_text(json.dumps(about | {"content": "other"}))
    monkeypatch.setattr(resume, "text_libraries", lambda: "tokenizers 99")
    with pytest.raises(UserError, match=r"other data, .* \(then transformers .*, now tokenizers 99\): give"):
        train(1, config_for(run, None, data, load=str(run), **settings))
