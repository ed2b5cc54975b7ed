"""The model, the checkpoint and the tokenized data that a run starts from; nothing large is built."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.checkpoint.hf.trained_turns import generation_ends, read_record
from megatron_probsft.data.sources.rows import check_files
from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.store.token_store import TokenStore, build_token_store
from megatron_probsft.data.text.chat_source import prints_the_date
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.data.tokenizers.notes import tokenizer_notes
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.models.layout import parallelism_problems
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.checks import (
    find_start,
    folder_problems,
    length_problems,
    resume_problems,
)
from megatron_probsft.training.start.problems import Problems


@dataclass(frozen=True)
class ModelSource:
    """The model to start from, its weights not yet read."""

    hf: HFModel
    checkpoint: Path | None
    """None: the weights of the Hugging Face folder."""


@dataclass(frozen=True)
class Inputs:
    """All that is known and checked before the model is built."""

    source: ModelSource
    train: TokenStore
    valid: TokenStore | None
    template_date: str | None
    """The day that the chat template shows as today's; None if it shows none."""

    @property
    def hf(self) -> HFModel:
        return self.source.hf


def find_model(config: TrainConfig, problems: Problems) -> ModelSource:
    """Return the model to start from, and note what does not go with it; small files are read.

    Noted: a folder that exists or is missing, a resume under other settings, a layout that does not divide,
    samples longer than the model takes.

    Raises:
        UserError: a damaged checkpoint or generation config, an unsupported model.
    """
    problems.add(folder_problems(config))
    start = find_start(config.model)
    hf = read_hf_model(start.folder)
    generation_ends(hf.folder), read_record(hf.folder)  # what exports will add to
    problems.add(resume_problems(config, start))
    problems.add(parallelism_problems(hf.shape, config.layout, distributed.world_size()))
    problems.add(length_problems(config.batch, hf.shape.max_position_embeddings))
    return ModelSource(hf, start.checkpoint)


def read_inputs(config: TrainConfig, source: ModelSource) -> Inputs:
    """Tokenize on rank 0 while the others wait, however long it takes, then open the cache everywhere.

    Raises:
        UserError: data that cannot be read or tokenized; the same on every rank.
    """
    tokenizer = load_tokenizer(source.hf.folder)
    date = _template_date(config, source.hf, tokenizer)

    def both() -> tuple[TokenStore, TokenStore | None]:
        data = config.data
        check_files([*data.data, *data.valid_data])
        train = _build(config, data.data, source.hf, tokenizer, date)
        return train, _build(config, data.valid_data, source.hf, tokenizer, date) if data.valid_data else None

    opened: list[tuple[TokenStore, TokenStore | None]] = []

    def first() -> None:
        opened.append(both())
        for note in tokenizer_notes(source.hf.folder, tokenizer):
            distributed.say(note)

    distributed.on_first_rank(first, "tokenizing")
    train, valid = opened[0] if opened else both()
    return Inputs(source, train, valid, date)


def _build(
    config: TrainConfig, files: list[str], hf: HFModel, tokenizer: Any, date: str | None
) -> TokenStore:
    data = config.data
    beside = Path(config.checkpoint.save).absolute().parent / "data_cache"
    options = StoreOptions(
        template=data.template,
        seq_length=config.batch.seq_length,
        vocab_size=hf.shape.vocab_size,
        truncation=data.truncation,
        prompt_key=data.prompt_key,
        response_key=data.response_key,
        messages_key=data.messages_key,
        weight_key=data.weight_key,
        template_date=date,
    )
    return build_token_store(
        files,
        tokenizer,
        options,
        cache_dir=Path(data.data_cache_path or beside),
        num_workers=data.num_workers,
        log=distributed.say,
    )


def _template_date(config: TrainConfig, hf: HFModel, tokenizer: Any) -> str | None:
    """Return the day that the chat template shows, the same on every rank: it may be midnight."""
    data = config.data
    if data.template != "chat" or data.template_date is not None or not prints_the_date(tokenizer):
        return data.template_date
    day = distributed.on_first_rank(lambda: _day_of_the_run(config, hf), "looking up the date")
    distributed.say(f"the chat template prints today's date: in this run always {day}")
    return day


def _day_of_the_run(config: TrainConfig, hf: HFModel) -> str:
    """Return the run's own day if it is resumed, else the one that the model was trained with, or today."""
    save, load = config.checkpoint.save, config.model.load
    before = Path(save) / "train_config.yaml"
    own = read_yaml_mapping(before) if load == save and before.is_file() else {}
    record = read_record(hf.folder)
    return own.get("template_date") or (record and record.date) or datetime.date.today().isoformat()
