"""The run: set up, train, validate, save."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import yaml
from rich.console import Console

from megatron_probsft.checkpoint.hf.weights import load_hf_weights
from megatron_probsft.checkpoint.megatron.run_folder import newest_step, saved_steps
from megatron_probsft.checkpoint.megatron.torch_dist import load_model
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.objectives.registry import get_objective, with_statistic
from megatron_probsft.probing.probe import probe
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import START, Batches
from megatron_probsft.training.checkpoints import Checkpoints
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.guards import check_replicas, save_batch
from megatron_probsft.training.log.metrics_file import drop_records_after
from megatron_probsft.training.log.reporter import Reporter
from megatron_probsft.training.preemption import StopRequests
from megatron_probsft.training.start.inputs import Inputs, check_inputs, token_stores
from megatron_probsft.training.start.resume import load_state, look_at
from megatron_probsft.training.start.samples_shown import show_samples
from megatron_probsft.training.state import (
    TrainState,
    build_gpt,
    build_train_state,
    data_parallel,
    schedule_problems,
)
from megatron_probsft.training.step import Criterion, train_step, validate
from megatron_probsft.training.turns import trained_turns
from megatron_probsft.vocab_parallel.head_parts import HeadOptions


def run(config: TrainConfig) -> TrainState:
    """Train as `config` says; collective over all processes.

    Raises:
        UserError: anything the user can mend, before the model is built wherever it can be known.
    """
    save = Path(config.save)
    hf, checkpoint = check_inputs(config)
    distributed.say(f"starting {distributed.world_size()} process(es) on {checkpoint or config.hf_model}")
    distributed.initialize(
        config.tensor_model_parallel_size,
        config.pipeline_model_parallel_size,
        config.context_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
        virtual_stages=config.num_virtual_stages_per_pipeline_rank,
        seed=config.seed,
    )
    inputs = Inputs(hf, checkpoint, *token_stores(config, hf))
    if config.show_samples and distributed.rank() == 0:
        show_samples(inputs.train, load_tokenizer(hf.folder), config.show_samples, Console(soft_wrap=True))
    resumed = None if config.finetune else checkpoint
    saved = look_at(resumed, config, inputs.train) if resumed else None
    batches = Batches(inputs.train, config, data_parallel(), saved.position if saved else START)
    train_iters = batches.train_iters()
    for problem in schedule_problems(config, train_iters):
        raise UserError(problem)

    state = _build(config, inputs, train_iters)
    if resumed and saved:
        distributed.say(
            f"{config.load} has checkpoints of steps {', '.join(map(str, saved_steps(resumed.parent)))}"
        )
        for note in load_state(state, resumed, saved, config, inputs.train):
            distributed.say(note)
    save.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        drop_records_after(save, state.iteration)
    with (
        Reporter(config, hf.shape, train_iters, state.iteration) as reporter,
        StopRequests(config.exit_duration_in_mins) as stops,
    ):
        checkpoints = _train(config, state, inputs, batches, reporter, stops)
    if state.iteration == train_iters:
        checkpoints.end(state)
    return state


def _build(config: TrainConfig, inputs: Inputs, train_iters: int) -> TrainState:
    gpt = build_gpt(config, inputs.hf)
    if inputs.checkpoint is None:
        load_hf_weights(gpt, inputs.hf)
    elif config.finetune:
        load_model(gpt, inputs.checkpoint)
    return build_train_state(config, gpt, train_iters)


def _train(
    config: TrainConfig,
    state: TrainState,
    inputs: Inputs,
    batches: Batches,
    reporter: Reporter,
    stops: StopRequests,
) -> Checkpoints:
    save, train_iters = Path(config.save), batches.train_iters()
    config_yaml = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    if distributed.rank() == 0:
        (save / "train_config.yaml").write_text(config_yaml)
    objective = get_objective(config.objective)
    criterion = Criterion(
        with_statistic(objective, "entropy") if config.log_entropy else objective,
        inputs.hf.shape.vocab_size,
        HeadOptions(config.loss_path, config.loss_chunk_tokens, config.loss_kernels),
        config.loss_denominator,
    )
    in_order = dataclasses.replace(config, data_weights=None)
    valid = Batches(inputs.valid, in_order, data_parallel()) if inputs.valid else None

    def validate_now() -> None:
        if valid is None:
            return
        started = time.perf_counter()
        by_source = {}
        for number, name in enumerate(inputs.valid.sources if inputs.valid else []):
            total = valid.steps_in_order(number)
            if total == 0:  # all left out by --truncation
                continue
            steps = reporter.progress(f"validation on {name}", valid.in_order(number), total)
            # It may take longer than the grace between a signal and the kill: what is cut short is not shown.
            steps = itertools.takewhile(lambda _: stops.reason() is None, steps)
            by_source[name] = validate(state.model, steps, criterion)
        seconds = time.perf_counter() - started
        reporter.phases.add({"validation": seconds})
        if stops.reason() is None:
            reporter.validation(state.iteration, by_source, seconds)

    trained = (
        trained_turns(inputs, config.template, config.template_date, reporter.say) if train_iters else None
    )
    checkpoints = Checkpoints(config, config_yaml, inputs.hf, inputs.train, trained, reporter.say)
    if state.iteration == 0:
        if config.probe_samples:
            with reporter.phases("validation"):
                vocabulary, most = inputs.hf.shape.vocab_size, config.probe_samples
                reporter.probe(probe(state.model, inputs.train, vocabulary, config, most, reporter.progress))
        validate_now()
        if train_iters == 0:
            with reporter.phases("checkpoint"):
                checkpoints.save(state)
                checkpoints.finish()
    else:
        checkpoints.resumed(state)
    skipped_in_a_row, equal_until, stop = 0, state.iteration, None
    while state.iteration < train_iters:
        with reporter.phases("data"):
            batch = batches.training_step(state.consumed_samples)
        result = train_step(state, batch, criterion)
        reporter.step(state.iteration, result, batch)
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        if skipped_in_a_row >= config.max_skipped_steps:
            file = save_batch(save, state.iteration, batch)
            raise UserError(
                f"{result.skipped} not finite in step {state.iteration}, the {skipped_in_a_row}. in a row "
                f"(--max-skipped-steps): its batch is in {file}; the weights are as before these steps"
            )
        if _divides(config.check_weight_hash_across_dp_replicas_interval, state.iteration):
            state.gather_weights()
            check_replicas([*state.gpt], state.iteration, equal_until, _newest_checkpoint(save))
            equal_until = state.iteration
            replicas = data_parallel()[1]
            reporter.say(f"step {equal_until}: all {replicas} data-parallel replicas hold the same weights")
        last = state.iteration == train_iters
        if last or _divides(config.eval_interval, state.iteration):
            validate_now()
        stop = stops.reason()
        if stop is None and _divides(config.exit_interval, state.iteration):
            stop = "--exit-interval"
        with reporter.phases("checkpoint"):
            checkpoints.poll()
            if last or stop or _divides(config.save_interval, state.iteration):
                checkpoints.save(state)
            if last or stop:
                checkpoints.finish()
        if stop and not last:
            reporter.say(f"stopped at step {state.iteration} by {stop}; continue with --load {save}")
            break
    reporter.finish("finished" if state.iteration == train_iters else f"stopped by {stop}")
    return checkpoints


def _newest_checkpoint(run_folder: Path) -> str:
    step = newest_step(run_folder)
    return "there is no checkpoint yet" if step is None else f"the newest checkpoint is of step {step}"


def _divides(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0
