"""The checks that a run goes through before it starts, in their order, the quickest first.

`check_start` looks at settings (config/rules.py) → folders → model → resume → layout → data → objective. It
reads small files and the first rows of data, before torch and Megatron-Core are imported, which takes many
seconds. Then `open_run.py` finds out the rest: the model as transformers reads it, all rows tokenized, the
data against the checkpoint and the weights, and the schedule. A check is a function here, or raises itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint, hf_folder_of, newest_step
from megatron_probsft.data.sources.row_check import check_rows
from megatron_probsft.data.sources.rows import check_files
from megatron_probsft.models.hf_model import read_raw_config
from megatron_probsft.models.layout import Sizes, parallelism_problems
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.processes.launch import launched_rank, launched_world_size
from megatron_probsft.training.config.batch import BatchSettings
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.config.data import DataSettings
from megatron_probsft.training.config.model import ModelSettings
from megatron_probsft.training.config.objective import ObjectiveSettings
from megatron_probsft.training.config.optimizer import ScheduleSettings
from megatron_probsft.training.config.rules import NO_START, settings_problems
from megatron_probsft.training.start.compare_runs import compare_runs
from megatron_probsft.training.start.problems import Problems

if TYPE_CHECKING:
    from megatron_probsft.data.store.token_store import TokenStore

_ROW_SECONDS = 1.0  # of reading training data, and of reading validation data


def check_start(config: TrainConfig, problems: Problems) -> None:
    """Note everything that small files and the first rows tell."""
    problems.add(settings_problems(config))
    problems.add(folder_problems(config))
    start = problems.attempt(lambda: find_start(config.model))
    if start is not None:
        _check_model(config, start, problems)
    if config.data.data:
        _check_data(config.data, problems)
    problems.add(objective_problems(config.objective))  # last: torch differentiates it


def _check_model(config: TrainConfig, start: Start, problems: Problems) -> None:
    raw = problems.attempt(lambda: read_raw_config(start.folder))
    problems.add(resume_problems(config, start))
    if raw is None:
        return
    if sizes := _sizes(raw):
        problems.add(parallelism_problems(sizes, config.layout, launched_world_size()))
    if isinstance(positions := raw.get("max_position_embeddings"), int) and not raw.get("sliding_window"):
        problems.add(length_problems(config.batch, positions))


def _check_data(data: DataSettings, problems: Problems) -> None:
    if not problems.attempt(lambda: check_files([*data.data, *data.valid_data]) or True):
        return
    for files in (data.data, data.valid_data):
        problems.attempt(
            lambda files=files: check_rows(
                files, _ROW_SECONDS, prompt_key=data.prompt_key, response_key=data.response_key,
                messages_key=data.messages_key, weight_key=data.weight_key,
            )
        )  # fmt: skip


def folder_problems(config: TrainConfig) -> Iterator[str]:
    """Yield a line for each folder to write that exists already, or cannot be written."""
    checkpoint, load = config.checkpoint, config.model.load
    save = Path(checkpoint.save)
    resuming_here = load is not None and Path(load).resolve() == save.resolve()
    if checkpoint.save and save.exists() and not resuming_here:
        yield f"--save {save} exists: choose a new folder, or resume it with --load {save}"
    grows = checkpoint.save_hf_at_each_save and resuming_here  # those of earlier checkpoints are in it
    if checkpoint.save_hf and Path(checkpoint.save_hf).exists() and not grows:
        yield f"--save-hf {checkpoint.save_hf} exists: choose a new folder"
    if launched_rank() == 0:
        for flag, folder in (
            ("--save", checkpoint.save),
            ("--save-hf", checkpoint.save_hf),
            ("--data-cache-path", config.data.data_cache_path),
        ):
            try:
                if folder:
                    check_writable(Path(folder), flag)
            except UserError as error:
                yield str(error)


@dataclass(frozen=True)
class Start:
    """The checkpoint or the Hugging Face model that a run starts from."""

    checkpoint: Path | None
    """None: the weights of the Hugging Face folder."""
    folder: Path | str
    """The Hugging Face folder of the checkpoint, or the folder or id of --hf-model."""


def find_start(model: ModelSettings) -> Start:
    """Return what the run starts from.

    Raises:
        UserError: no such checkpoint, or a damaged one; the settings do not say.
    """
    if model.load and (model.hf_model is None or _holds_checkpoint(Path(model.load))):
        checkpoint, _ = find_checkpoint(Path(model.load), model.ckpt_step)
        return Start(checkpoint, hf_folder_of(checkpoint))
    if model.hf_model is None:
        raise UserError(NO_START)
    return Start(None, model.hf_model)


def _holds_checkpoint(run_folder: Path) -> bool:
    return run_folder.is_dir() and newest_step(run_folder) is not None


def resume_problems(config: TrainConfig, start: Start) -> list[str]:
    """Return a line for each setting that a resumed run must share with the one before it, and does not."""
    if start.checkpoint is None or config.model.finetune:
        return []
    return compare_runs(start.checkpoint, config)[1]


def length_problems(batch: BatchSettings, positions: int) -> Iterator[str]:
    """Yield a line if samples may be longer than the model takes."""
    if batch.seq_length > positions:
        yield (
            f"--seq-length {batch.seq_length} is more than the model's {positions} positions (its context, "
            "or the sliding window within which its attention is full)"
        )


def objective_problems(settings: ObjectiveSettings) -> Iterator[str]:
    """Yield a line if --objective names none, or one that should not be minimised."""
    # Here: torch takes seconds to import, and other mistakes are found without it.
    from megatron_probsft.objectives.registry import ObjectiveError, get_objective, hidden_threshold

    try:
        objective = get_objective(settings.objective)
        p = None if settings.loss_denominator == "tokens" else hidden_threshold(objective)
    except ObjectiveError as error:
        yield str(error)
        return
    if p is not None:
        yield (
            f"--loss-denominator {settings.loss_denominator} counts the tokens that the objective keeps, but "
            f"{settings.objective} does not say that its gradient is cut off at p = {p:.3g}: give the "
            "function an attribute keeps, like f.keeps = lambda log_p: log_p.exp() >= 0.2"
        )


def weight_problems(config: TrainConfig, train: TokenStore, valid: TokenStore | None) -> Iterator[str]:
    """Yield a line if weights of rows or sources do not go with the tokenized data or the denominator."""
    denominator, weights = config.objective.loss_denominator, config.data.data_weights
    if denominator != "tokens" and any(one is not None and one.weights is not None for one in (train, valid)):
        yield f"--loss-denominator {denominator} does not go with weighted data"
    if weights is None:
        return
    sizes = np.bincount(train.source, minlength=len(weights))
    for name, size, weight in zip(train.sources, sizes, weights, strict=False):
        if size == 0:
            yield (
                f"{name}: none of its samples is left at --seq-length {config.batch.seq_length}, but "
                f"--data-weights gives it {weight}"
            )


def schedule_problems(schedule: ScheduleSettings, train_iters: int) -> Iterator[str]:
    """Yield a line if the schedule does not fit into a run of so many steps."""
    warmup, decay = schedule.warmup_steps(train_iters), schedule.lr_wsd_decay_iters
    if 0 < warmup >= train_iters:
        yield f"--lr-warmup-iters {warmup} leaves nothing of the run's {train_iters} steps"
    elif decay is not None and decay > train_iters - warmup:
        yield f"--lr-wsd-decay-iters {decay} is more than the {train_iters - warmup} steps after warmup"


@dataclass(frozen=True)
class _DenseSizes:
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    experts: None = None


def _sizes(raw: dict[str, Any]) -> Sizes | None:
    """Return the sizes of a dense model that its config.json spells out; None where transformers must say."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    values = [raw.get(name) for name in names]
    if any("expert" in key for key in raw) or not all(type(value) is int for value in values):
        return None
    return _DenseSizes(*values)  # type: ignore[arg-type]
