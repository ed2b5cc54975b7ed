"""`--dry-run`: what a run would be, before it costs anything."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from megatron_probsft.data.sources.rows import check_files
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.store.turn_ends import turn_ends
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import Batches
from megatron_probsft.training.config.arguments import objective_problems, problems_of
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.inputs import look_at_inputs, token_stores
from megatron_probsft.training.start.memory_estimate import StageMemory, parameter_count, stage_memory
from megatron_probsft.training.start.resume import look_at
from megatron_probsft.training.start.samples_shown import show_samples
from megatron_probsft.training.state import schedule_problems

_STEPS_LOOKED_AT = 50
_SAMPLES_SHOWN = 2


def dry_run(config: TrainConfig) -> None:
    """Print the model's and the data's sizes, memory per rank, steps and packs, and what is not the default.

    One process. The layout is that of WORLD_SIZE processes, or of the fewest that the flags ask for. Reads
    no weights; tokenizes the data, into the same cache as the run will use, or without --save and
    --data-cache-path into none that stays.

    Raises:
        UserError: with all problems found, not only the first.
    """
    console = Console(width=None if os.isatty(1) else 110)
    with _data_cache(config) as cached:
        _show(cached, _prepare(cached), console)
    console.print(_settings(config), markup=False, highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """What a run would start with."""

    hf: HFModel
    train: TokenStore
    valid: TokenStore | None
    batches: Batches
    world: int
    dp: int


@contextlib.contextmanager
def _data_cache(config: TrainConfig) -> Iterator[TrainConfig]:
    """The settings with a folder for tokenized data, a temporary one where nothing says which."""
    if config.save or config.data_cache_path:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        yield dataclasses.replace(config, data_cache_path=folder)


def _prepare(config: TrainConfig) -> _Prepared:
    """Raises UserError: all problems."""
    stage = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    model_parallel = stage * config.context_parallel_size
    # Experts are shared by processes that see different samples, or different parts of them.
    fewest = stage * math.lcm(config.context_parallel_size, config.expert_model_parallel_size)
    os.environ.setdefault("WORLD_SIZE", str(max(fewest, 1)))
    problems = [*problems_of(config), *objective_problems(config)]
    found, of_inputs = look_at_inputs(config)
    problems += [problem for problem in of_inputs if problem not in problems]
    world = distributed.world_size()
    os.environ.pop("RANK", None)  # from here on this one process
    files = [*config.data, *config.valid_data]
    readable = config.data and _collect(problems, lambda: check_files(files) or True)
    stores = _collect(problems, lambda: _stores(config, found[0])) if found and readable else None
    dp = max(world // max(model_parallel, 1), 1)
    batches = None
    if found and stores:
        resumed = None if config.finetune else found[1]
        if resumed and not of_inputs:
            _collect(problems, lambda: look_at(resumed, config, stores[0]))
        batches = _collect(problems, lambda: Batches(stores[0], config, (0, dp)))
    if batches and (config.train_iters is not None or config.train_epochs is not None):
        problems += schedule_problems(config, batches.train_iters())
    if problems:
        listed = "".join(f"\n  {number}. {text}" for number, text in enumerate(problems, 1))
        raise UserError(f"{len(problems)} problem(s):{listed}")
    assert found is not None
    assert stores is not None
    assert batches is not None
    return _Prepared(found[0], *stores, batches, world, dp)


def _show(config: TrainConfig, run: _Prepared, console: Console) -> None:
    hf, batches, dp = run.hf, run.batches, run.dp
    epochs = batches.total_samples() / len(run.train)
    looked_at = min(max(batches.train_iters(), 1), _STEPS_LOOKED_AT)
    plans = [batches.training_plan(step * config.global_batch_size) for step in range(looked_at)]
    lengths = [max(plan.lengths) for plan in plans]
    most = max(len(plan.packs) for plan in plans)
    tokenizer = load_tokenizer(hf.folder)
    show_samples(run.train, tokenizer, config.show_samples or _SAMPLES_SHOWN, console)
    console.print(_data_table(run.train, run.valid))
    console.print(turn_ends(run.train, tokenizer).describe(tokenizer), markup=False, highlight=False)
    efficiency = np.mean([plan.efficiency for plan in plans])
    console.print(
        f"{batches.train_iters():,} steps of {config.global_batch_size} samples, "
        f"{epochs:.2f} epochs; in the first {len(plans)} steps up to {most} "
        f"micro-batch(es) of up to {max(lengths):,} tokens on each of {dp} data-parallel rank(s), "
        f"{efficiency:.1%} of their tokens real"
    )
    stages = stage_memory(config, hf.family, hf.shape, dp, most, max(lengths))
    console.print(
        f"{parameter_count(hf.family, hf.shape):,} parameters ({hf.family.name}) on {run.world} process(es): "
        f"TP {config.tensor_model_parallel_size} × PP {config.pipeline_model_parallel_size} "
        f"× CP {config.context_parallel_size} × DP {dp}"
    )
    console.print(_memory_table(stages))


def _settings(config: TrainConfig) -> str:
    """As YAML, which --config reads: those that are not the default, or all."""
    values, usual = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
    if config.verbose:
        title = "all settings"
    else:
        title = "settings that are not the default (--verbose: all)"
        values = {name: value for name, value in values.items() if value != usual[name] and name != "dry_run"}
    return f"{title}:\n\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


def _collect[T](problems: list[str], work: Callable[[], T]) -> T | None:
    try:
        return work()
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None


def _stores(config: TrainConfig, hf: HFModel) -> tuple[TokenStore, TokenStore | None]:
    distributed.initialize()
    return token_stores(config, hf)


def _data_table(train: TokenStore, valid: TokenStore | None) -> Table:
    table = Table(title="data")
    for heading in (
        "",
        "samples",
        "tokens",
        "supervised",
        "length: median",
        "95 %",
        "longest",
        "cut",
        "left out",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, store in (("training", train), ("validation", valid)):
        if store is not None:
            lengths = store.lengths
            table.add_row(
                name, f"{len(store):,}", f"{lengths.sum():,}", f"{store.supervised.sum():,}",
                f"{np.median(lengths):,.0f}", f"{np.percentile(lengths, 95):,.0f}", f"{lengths.max():,}",
                f"{store.cut:,}", f"{store.left_out:,}",
            )  # fmt: skip
    return table


def _memory_table(stages: list[StageMemory]) -> Table:
    table = Table(title="estimated GiB per rank, by pipeline stage")
    parts = ["weights", "gradients", "optimizer", "activations", "head", "total"]
    for heading in ("stage", "parameters", *parts):
        table.add_column(heading, justify="right")
    for stage in stages:
        sizes = [f"{getattr(stage, part) / 2**30:.2f}" for part in parts]
        table.add_row(str(stage.stage), f"{stage.parameters:,}", *sizes)
    return table
