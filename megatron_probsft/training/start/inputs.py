"""What a run starts from: model, checkpoint, tokenized data; checked before anything large is built."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_probsft.checkpoint.hf.trained_turns import generation_ends, read_record
from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.store.token_store import TokenStore, build_token_store
from megatron_probsft.data.text.chat_source import prints_the_date
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.data.tokenizers.notes import tokenizer_notes
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.models.layout import parallelism_problems
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.compare_runs import compare_runs
from megatron_probsft.training.start.start_checks import find_start, folder_problems, length_problems


@dataclass(frozen=True)
class Inputs:
    """All that is known and checked before the model is built."""

    hf: HFModel
    checkpoint: Path | None
    train: TokenStore
    valid: TokenStore | None


def check_inputs(config: TrainConfig) -> tuple[HFModel, Path | None]:
    """Everything that can be refused before process groups exist; reads only small files.

    Returns:
        The model, and the checkpoint to start from if there is one.

    Raises:
        UserError: the first problem of those that `look_at_inputs` finds.
    """
    found, problems = look_at_inputs(config)
    if problems:
        raise UserError(problems[0])
    assert found is not None
    return found


def look_at_inputs(config: TrainConfig) -> tuple[tuple[HFModel, Path | None] | None, list[str]]:
    """(what `check_inputs` gives, None where the model cannot be read; a line per problem).

    Problems: a folder that exists or is missing, a damaged checkpoint or generation config, a resume under
    other settings, an unsupported model, a layout that does not divide, samples longer than the model takes.
    """
    problems = list(folder_problems(config))
    if config.hf_model is None and config.load is None:  # which the settings' own check tells
        return None, problems
    try:
        checkpoint, folder = find_start(config)
        hf = read_hf_model(folder)
        generation_ends(hf.folder), read_record(hf.folder)  # what exports will add to
    except UserError as error:
        return None, [*problems, str(error)]
    if checkpoint is not None and not config.finetune:
        _, changed = compare_runs(checkpoint, config)
        problems += changed
    problems += parallelism_problems(hf.shape, config.layout(), distributed.world_size())
    problems += length_problems(config, hf.shape.max_position_embeddings)
    return (hf, checkpoint), problems


def token_stores(config: TrainConfig, hf: HFModel) -> tuple[TokenStore, TokenStore | None]:
    """Tokenize on rank 0 while the others wait, then open the cache everywhere.

    Sets `config.template_date` where the chat template shows one and the flag does not say which.
    """
    tokenizer = load_tokenizer(hf.folder)
    if config.template == "chat" and config.template_date is None and prints_the_date(tokenizer):
        day = [_date(config, hf) if distributed.rank() == 0 else None]
        dist.broadcast_object_list(day, src=0)  # it may be midnight
        config.template_date = day[0]
        distributed.say(f"the chat template prints today's date: in this run always {config.template_date}")
    cache = Path(config.data_cache_path or Path(config.save).absolute().parent / "data_cache")

    def build(files: list[str]) -> TokenStore:
        options = StoreOptions(
            template=config.template,
            seq_length=config.seq_length,
            vocab_size=hf.shape.vocab_size,
            truncation=config.truncation,
            prompt_key=config.prompt_key,
            response_key=config.response_key,
            messages_key=config.messages_key,
            weight_key=config.weight_key,
            template_date=config.template_date,
        )
        return build_token_store(
            files, tokenizer, options, cache_dir=cache, num_workers=config.num_workers, log=distributed.say
        )

    def both() -> tuple[TokenStore, TokenStore | None]:
        return build(config.data), build(config.valid_data) if config.valid_data else None

    outcome: list[tuple[TokenStore, TokenStore | None] | UserError | None] = [None]
    if distributed.rank() == 0:
        try:
            outcome[0] = both()
            for note in tokenizer_notes(hf.folder, tokenizer):
                distributed.say(note)
        except UserError as error:
            outcome[0] = error
    failure = [str(outcome[0]) if isinstance(outcome[0], UserError) else None]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise UserError(failure[0])
    return both() if outcome[0] is None else outcome[0]  # type: ignore[return-value]


def _date(config: TrainConfig, hf: HFModel) -> str:
    """The run's own day if it is resumed, the one that the model was trained with here, or today."""
    before = Path(config.save) / "train_config.yaml"
    own = read_yaml_mapping(before) if config.load == config.save and before.is_file() else {}
    record = read_record(hf.folder)
    return own.get("template_date") or (record and record.date) or datetime.date.today().isoformat()
