"""`--dry-run` shows what a run would be, before it costs anything."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.store.turn_ends import turn_ends
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.consoles import console
from megatron_probsft.training.batches import Plan
from megatron_probsft.training.config.batch import BatchSettings
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.show_step import show_step
from megatron_probsft.training.simulate.simulate_step import simulate_step
from megatron_probsft.training.simulate.step_samples import StepSamples, full_packs
from megatron_probsft.training.start.checks import check_start
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.start.inputs import Inputs, ModelSource, find_model, read_inputs
from megatron_probsft.training.start.memory_estimate import StageMemory, parameter_count, stage_memory
from megatron_probsft.training.start.open_run import Steps, check_data, plan_steps
from megatron_probsft.training.start.problems import Problems
from megatron_probsft.training.start.samples_shown import show_samples
from megatron_probsft.training.throughput.show import show_estimates

_STEPS_LOOKED_AT = 50
_SAMPLES_SHOWN = 2


def dry_run(config: TrainConfig) -> None:
    """Print the model's and the data's sizes, memory per rank, steps and packs, and what is not the default.

    One process. The layout is that of --world-size or WORLD_SIZE processes, or of the fewest that the flags
    ask for; with --world-size, which needs no data, a step is simulated too. Reads no weights; tokenizes the
    data, into the same cache as the run will use, or without --save and --data-cache-path into none that
    stays.

    Raises:
        UserError: with all problems found, not only the first.
    """
    out = console(width=110)
    if config.data.data or config.preview.world_size is None:
        with _data_cache(config) as cached:
            prepared = _prepare(cached)
            _show(prepared.config, prepared, out)
        config = config.replace(template_date=prepared.inputs.template_date)
    else:
        _show_without_data(config, out)
    out.print(_settings(config), markup=False, highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A run as it would start, without its model."""

    config: TrainConfig
    """The settings, with what follows from the device among them."""
    inputs: Inputs
    steps: Steps
    world: int
    dp: int


@contextlib.contextmanager
def _data_cache(config: TrainConfig) -> Iterator[TrainConfig]:
    """Give the settings a folder for tokenized data, a temporary one where nothing says which."""
    if config.checkpoint.save or config.data.data_cache_path:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        yield config.replace(data_cache_path=folder)


def _prepare(config: TrainConfig) -> _Prepared:
    """Go through a run's checks, and open it up to its steps. Raises UserError: all problems."""
    problems = Problems(collecting=True)
    config, source, world = _check(config, problems)
    dp = _replicas(config.layout, world)
    inputs = problems.attempt(lambda: _read(config, source)) if source and config.data.data else None
    if inputs:
        saved = check_data(config, inputs, problems)
        if _are_countable(config.batch):
            steps = plan_steps(config, inputs, saved, (0, dp), problems)
            problems.raise_all()
            return _Prepared(config, inputs, steps, world, dp)
    problems.raise_all()
    raise AssertionError("what could not be read was noted")


def _check(config: TrainConfig, problems: Problems) -> tuple[TrainConfig, ModelSource | None, int]:
    """Return the settings with what follows from the device, the model if it is one, and the world's size.

    Noted: everything that small files tell.
    """
    layout, given = config.layout, config.preview.world_size
    stage = layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size
    # Experts are shared by processes that see different samples, or different parts of them.
    fewest = stage * math.lcm(layout.context_parallel_size, layout.expert_model_parallel_size)
    os.environ.setdefault("WORLD_SIZE", str(max(fewest, 1)))
    if given:
        os.environ["WORLD_SIZE"] = str(given)
    check_start(config, problems)
    source = problems.attempt(lambda: find_model(config, problems))
    world = distributed.world_size()
    os.environ.pop("RANK", None)  # from here on this one process
    if source:
        resumed = None if config.model.finetune else source.checkpoint
        config = by_device(config, resumed, world, gpu=True if given else None)
    return config, source, world


def _replicas(layout: LayoutSettings, world: int) -> int:
    """Return the size of the data-parallel groups."""
    stage = layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size
    return max(world // max(stage * layout.context_parallel_size, 1), 1)


def _are_countable(batch: BatchSettings) -> bool:
    """Tell whether the settings say how many steps there are; if they do not, that was noted."""
    length = batch.train_epochs if batch.train_iters is None else batch.train_iters
    return length is not None and math.isfinite(length) and batch.global_batch_size > 0


def _read(config: TrainConfig, source: ModelSource) -> Inputs:
    distributed.initialize()
    return read_inputs(config, source)


def _show(config: TrainConfig, run: _Prepared, out: Console) -> None:
    hf, batches = run.inputs.hf, run.steps.batches
    tokenizer = load_tokenizer(hf.folder)
    show_samples(run.inputs.train, tokenizer, config.preview.show_samples or _SAMPLES_SHOWN, out)
    out.print(_data_table(run.inputs.train, run.inputs.valid))
    out.print(turn_ends(run.inputs.train, tokenizer).describe(tokenizer), markup=False, highlight=False)
    size = config.batch.global_batch_size
    looked_at = min(max(math.ceil(batches.total_samples() / size), 1), _STEPS_LOOKED_AT)
    plans = [batches.training_plan(step * size) for step in range(looked_at)]
    longest = max(max(plan.lengths) for plan in plans)
    most = max(len(plan.packs) for plan in plans)
    out.print(
        f"{run.steps.train_iters:,} steps of {size} samples, "
        f"{batches.total_samples() / len(run.inputs.train):.2f} epochs; in the first {len(plans)} steps up "
        f"to {most} micro-batch(es) of up to {longest:,} tokens on each of {run.dp} data-parallel rank(s), "
        f"{np.mean([plan.efficiency for plan in plans]):.1%} of their tokens real"
    )
    _show_layout(config, hf, run.world, (most, longest), out)
    if config.preview.world_size:
        tokens, labels = batches.sample_sizes(_largest(plans) * size)
        _simulate(config, hf, StepSamples(tuple(tokens.tolist()), tuple(labels.tolist())), run.world, out)


def _show_without_data(config: TrainConfig, out: Console) -> None:
    """Print what a run with --world-size would be on packs that are full."""
    problems = Problems(collecting=True)
    config, source, world = _check(config, problems)
    problems.raise_all()
    assert source is not None
    batch = config.batch
    out.print(
        f"without --data: each of the {batch.global_batch_size} samples of a step has --seq-length, "
        f"{batch.seq_length:,}, tokens, all of them supervised"
    )
    each = -(-batch.global_batch_size // (batch.micro_batch_size * _replicas(config.layout, world)))
    _show_layout(config, source.hf, world, (each, batch.seq_length * batch.micro_batch_size), out)
    _simulate(config, source.hf, full_packs(config), world, out)


def _show_layout(config: TrainConfig, hf: HFModel, world: int, packs: tuple[int, int], out: Console) -> None:
    """Print the model's size, the layout and the estimate for a rank's (micro-batches, pack length)."""
    layout, dp = config.layout, _replicas(config.layout, world)
    out.print(
        f"{parameter_count(hf.family, hf.shape):,} parameters ({hf.family.name}) on {world} process(es): "
        f"TP {layout.tensor_model_parallel_size} × PP {layout.pipeline_model_parallel_size} "
        f"× CP {layout.context_parallel_size} × DP {dp}"
    )
    out.print(_memory_table(stage_memory(config, hf.family, hf.shape, dp, *packs)))


def _largest(plans: list[Plan]) -> int:
    return max(range(len(plans)), key=lambda step: (max(plans[step].lengths), len(plans[step].packs)))


def _simulate(config: TrainConfig, hf: HFModel, samples: StepSamples, world: int, out: Console) -> None:
    if config.preview.gpu:
        show_estimates(config, hf, samples, world, out)
        return
    step = simulate_step(config, hf.folder, samples, world)
    show_step(step, out, config.preview.dry_run_json)


def _settings(config: TrainConfig) -> str:
    """Return the settings as YAML, which --config reads: those that are not the default, or all."""
    values = config.flat()
    if config.preview.verbose:
        title = "all settings"
    else:
        title = "settings that are not the default (--verbose: all)"
        usual = TrainConfig().flat()
        own = ("dry_run", "world_size", "dry_run_json", "gpu", "suggest_layout")  # the run itself is not one
        values = {name: value for name, value in values.items() if value != usual[name] and name not in own}
    return f"{title}:\n\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


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
