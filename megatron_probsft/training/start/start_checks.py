"""What a run can be refused for before torch and Megatron-Core are imported, which takes many seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint, hf_folder_of, newest_step
from megatron_probsft.data.sources.row_check import check_rows
from megatron_probsft.data.sources.rows import check_files
from megatron_probsft.models.hf_model import read_raw_config
from megatron_probsft.models.layout import parallelism_problems
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.launch import launched_rank, launched_world_size
from megatron_probsft.training.config.arguments import objective_problems
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.compare_runs import compare_runs

_ROW_SECONDS = 1.0  # of reading training data, and of reading validation data


def check_start(config: TrainConfig) -> None:
    """Refuse what small files and the first rows tell; `check_inputs` and tokenizing tell the rest, later.

    Raises:
        UserError: the first problem of folders, model, layout, data, objective, in this order.
    """
    for problem in _problems(config):
        raise UserError(problem)


def _problems(config: TrainConfig) -> Iterator[str]:
    """One after the other, the quickest to find first."""
    yield from folder_problems(config)
    checkpoint, folder = find_start(config)
    raw = read_raw_config(folder)
    if checkpoint is not None and not config.finetune:
        yield from compare_runs(checkpoint, config)[1]
    if sizes := _sizes(raw):
        yield from parallelism_problems(sizes, config.layout(), launched_world_size())
    if isinstance(positions := raw.get("max_position_embeddings"), int) and not raw.get("sliding_window"):
        yield from length_problems(config, positions)
    check_files([*config.data, *config.valid_data])
    for files in (config.data, config.valid_data):
        check_rows(
            files, _ROW_SECONDS, prompt_key=config.prompt_key, response_key=config.response_key,
            messages_key=config.messages_key, weight_key=config.weight_key,
        )  # fmt: skip
    yield from objective_problems(config)  # torch differentiates it


def folder_problems(config: TrainConfig) -> Iterator[str]:
    """Folders to write that exist already, or cannot be written, a line each."""
    save = Path(config.save)
    resuming_here = config.load is not None and Path(config.load).resolve() == save.resolve()
    if config.save and save.exists() and not resuming_here:
        yield f"--save {save} exists: choose a new folder, or resume it with --load {save}"
    grows = config.save_hf_at_each_save and resuming_here  # those of earlier checkpoints are in it
    if config.save_hf and Path(config.save_hf).exists() and not grows:
        yield f"--save-hf {config.save_hf} exists: choose a new folder"
    if launched_rank() == 0:
        for flag in ("save", "save_hf", "data_cache_path"):
            folder = getattr(config, flag)
            try:
                if folder:
                    check_writable(Path(folder), f"--{flag.replace('_', '-')}")
            except UserError as error:
                yield str(error)


def length_problems(config: TrainConfig, positions: int) -> Iterator[str]:
    """A line where samples may be longer than the model takes."""
    if config.seq_length > positions:
        yield (
            f"--seq-length {config.seq_length} is more than the model's {positions} positions (its context, "
            "or the sliding window within which its attention is full)"
        )


def find_start(config: TrainConfig) -> tuple[Path | None, Path | str]:
    """The checkpoint to start from, None to start from --hf-model; the Hugging Face folder, or id, of either.

    Raises:
        UserError: no such checkpoint, or a damaged one.
    """
    if config.load and (config.hf_model is None or _holds_checkpoint(Path(config.load))):
        checkpoint, _ = find_checkpoint(Path(config.load), config.ckpt_step)
        return checkpoint, hf_folder_of(checkpoint)
    return None, str(config.hf_model)


def _holds_checkpoint(run_folder: Path) -> bool:
    return run_folder.is_dir() and newest_step(run_folder) is not None


@dataclass(frozen=True)
class _Sizes:
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    experts: None = None


def _sizes(raw: dict[str, Any]) -> _Sizes | None:
    """The sizes of a dense model that its config.json spells out; None where transformers must say."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    values = [raw.get(name) for name in names]
    if any("expert" in key for key in raw) or not all(type(value) is int for value in values):
        return None
    return _Sizes(*values)  # type: ignore[arg-type]
