"""The one way in which a run is opened: settings → model → data → steps → weights, optimizer → resumed state.

The loop, the probe and the benchmarks open what they need of it; a dry run goes as far as the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint.hf.weights import load_hf_weights
from megatron_probsft.checkpoint.megatron.run_folder import saved_steps
from megatron_probsft.checkpoint.megatron.torch_dist import load_model
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.models.transfer_overlap import start_transfer_overlap
from megatron_probsft.objectives.registry import get_objective, with_statistic
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.consoles import console
from megatron_probsft.training.batches import START, Batches
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.config.rules import settings_problems
from megatron_probsft.training.start.checks import (
    objective_problems,
    schedule_problems,
    weight_problems,
)
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.start.inputs import Inputs, ModelSource, find_model, read_inputs
from megatron_probsft.training.start.problems import Problems
from megatron_probsft.training.start.resume import Saved, load_state, look_at
from megatron_probsft.training.start.samples_shown import show_samples
from megatron_probsft.training.state import (
    TrainState,
    build_gpt,
    build_train_state,
    data_parallel,
    join_layout,
)
from megatron_probsft.training.step import Criterion
from megatron_probsft.vocab_parallel.head_parts import HeadOptions


@dataclass(frozen=True)
class Steps:
    """The steps that a run will take, known before its model is built."""

    batches: Batches
    train_iters: int
    saved: Saved | None
    """The place of the checkpoint that is resumed, if one is."""


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready for its next step."""

    config: TrainConfig
    """The settings, with the day that a chat template shows and what follows from the device among them."""
    inputs: Inputs
    batches: Batches
    train_iters: int
    criterion: Criterion
    state: TrainState


def open_run(config: TrainConfig) -> OpenRun:
    """Return the run that the settings ask for, ready for its next step. Collective over all processes.

    Raises:
        UserError: anything the user can mend, before the model is built wherever it can be known.
    """
    problems = Problems()
    problems.add(settings_problems(config))
    problems.add(objective_problems(config.objective))
    source = find_model(config, problems)
    distributed.say(
        f"starting {distributed.world_size()} process(es) on {source.checkpoint or config.model.hf_model}"
    )
    config, inputs = open_inputs(config, source)
    shown = config.preview.show_samples
    if shown and distributed.rank() == 0:
        show_samples(inputs.train, load_tokenizer(inputs.hf.folder), shown, console(80, soft_wrap=True))
    saved = check_data(config, inputs, problems)
    steps = plan_steps(config, inputs, saved, data_parallel(), problems)
    criterion = criterion_of(config, inputs.hf.shape.vocab_size)
    if config.kernels.tp_comm_overlap:
        tokens = steps.batches.longest_pack // config.layout.context_parallel_size
        fp8 = config.precision.fp8_format is not None
        start_transfer_overlap(tokens, inputs.hf.shape.hidden_size, fp8=fp8)
    gpt = open_model(config, inputs)
    distributed.wait_for_all("reading the weights")
    state = build_train_state(gpt, config.layout, config.optimizer, config.schedule, steps.train_iters)
    if steps.saved:
        _resume(config, inputs, steps.saved, state)
        distributed.wait_for_all("reading the checkpoint")
    return OpenRun(config, inputs, steps.batches, steps.train_iters, criterion, state)


def open_inputs(config: TrainConfig, source: ModelSource) -> tuple[TrainConfig, Inputs]:
    """Join the processes in the layout of the settings and tokenize the data. Collective over all processes.

    Returns:
        The settings, with the day that a chat template shows and what follows from the device among them; the
        model's files and the data.

    Raises:
        UserError: data that cannot be read or tokenized.
    """
    resumed = None if config.model.finetune else source.checkpoint
    config = by_device(config, resumed, distributed.world_size())
    distributed.join_processes(config.layout.distributed_timeout_minutes)
    join_layout(config.layout, config.batch.seed)
    inputs = read_inputs(config, source)
    return config.replace(template_date=inputs.template_date), inputs


def check_data(config: TrainConfig, inputs: Inputs, problems: Problems) -> Saved | None:
    """Return the place of the checkpoint that is resumed, if one is.

    Noted: a checkpoint that this run would not continue, weights that do not go with the data.
    """
    checkpoint = None if config.model.finetune else inputs.source.checkpoint
    saved = problems.attempt(lambda: look_at(checkpoint, config, inputs.train)) if checkpoint else None
    problems.add(weight_problems(config, inputs.train, inputs.valid))
    return saved


def plan_steps(
    config: TrainConfig,
    inputs: Inputs,
    saved: Saved | None,
    data_parallel: tuple[int, int],
    problems: Problems,
) -> Steps:
    """Return the steps of the run on one rank, (rank, size), of a data-parallel group.

    Noted: a schedule that does not fit.
    """
    batches = Batches(
        inputs.train,
        config.batch,
        config.layout,
        data_parallel,
        weights=None if problems else config.data.data_weights,  # a dry run goes on: they change no number
        start=saved.position if saved else START,
    )
    if config.preview.world_size:
        batches = batches.on_gpus()
    train_iters = batches.train_iters()
    problems.add(schedule_problems(config.schedule, train_iters))
    return Steps(batches, train_iters, saved)


def open_model(config: TrainConfig, inputs: Inputs) -> list[GPTModel]:
    """Return this rank's part of the model, in chunks, with its weights unless a resume will read them."""
    gpt = build_gpt(inputs.hf, config.layout, config.precision, config.kernels, packing=config.batch.packing)
    if inputs.source.checkpoint is None:
        load_hf_weights(gpt, inputs.hf)
    elif config.model.finetune:
        load_model(gpt, inputs.source.checkpoint)
    return gpt


def head_options(config: TrainConfig) -> HeadOptions:
    """Return how the output head computes its losses."""
    settings = config.objective
    chunk_tokens = settings.loss_chunk_tokens or HeadOptions.chunk_tokens
    return HeadOptions(settings.loss_path, chunk_tokens, settings.loss_kernels)


def criterion_of(config: TrainConfig, vocab_size: int) -> Criterion:
    """Return what the run minimises."""
    objective = get_objective(config.objective.objective)
    if config.logging.log_entropy:
        objective = with_statistic(objective, "entropy")
    return Criterion(objective, vocab_size, head_options(config), config.objective.loss_denominator)


def _resume(config: TrainConfig, inputs: Inputs, saved: Saved, state: TrainState) -> None:
    checkpoint = inputs.source.checkpoint
    assert checkpoint is not None
    steps = ", ".join(map(str, saved_steps(checkpoint.parent)))
    distributed.say(f"{config.model.load} has checkpoints of steps {steps}")
    for note in load_state(state, checkpoint, saved, inputs.train):
        distributed.say(note)
