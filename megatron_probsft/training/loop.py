"""The loop of a run: batch, step, guard, validate, save."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.processes.heartbeat import progress
from megatron_probsft.training.ahead import ahead
from megatron_probsft.training.batches import Batches, StepBatch
from megatron_probsft.training.checkpoints import Checkpoints
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.guards import StepGuard
from megatron_probsft.training.log.metrics_file import drop_records_after
from megatron_probsft.training.log.reporter import Reporter
from megatron_probsft.training.preemption import StopRequests
from megatron_probsft.training.probe_data import probe_data
from megatron_probsft.training.start.open_run import OpenRun, open_run
from megatron_probsft.training.state import TrainState, data_parallel
from megatron_probsft.training.step import train_step, validate
from megatron_probsft.training.turns import trained_turns


def run(config: TrainConfig) -> TrainState:
    """Train as `config` says, and return the last state; collective over all processes.

    Raises:
        UserError: anything the user can mend, before the model is built wherever it can be known.
    """
    opened = open_run(config)
    state, folder = opened.state, Path(config.checkpoint.save)
    folder.mkdir(parents=True, exist_ok=True)
    distributed.on_first_rank(lambda: drop_records_after(folder, state.iteration), "reading the metrics")
    with (
        Reporter(opened.config, opened.inputs.hf.shape, opened.train_iters, state.iteration) as reporter,
        StopRequests(config.checkpoint.exit_duration_in_mins) as stops,
        contextlib.closing(ahead(opened.batches.training_steps(state.consumed_samples))) as steps,
    ):
        checkpoints = _train(opened, steps, reporter, stops)
    if state.iteration == opened.train_iters:
        checkpoints.end(state)
    return state


def _train(run: OpenRun, steps: Iterator[StepBatch], reporter: Reporter, stops: StopRequests) -> Checkpoints:
    config, state, train_iters = run.config, run.state, run.train_iters
    checkpoints = _checkpoints(run, reporter)
    guard = StepGuard(config.guards, Path(config.checkpoint.save), state.iteration, reporter.say)
    valid = _validation_batches(run)
    if state.iteration == 0:
        _probe(run, reporter)
        _validate(run, valid, reporter, stops)
    else:
        checkpoints.resumed(state)
    stop = None
    while state.iteration < train_iters:
        progress(step=state.iteration + 1)
        with reporter.phases("data"):
            batch = next(steps)
        result = train_step(state, batch, run.criterion)
        reporter.step(state.iteration, result, batch)
        guard.check(state, result, batch)
        last = state.iteration == train_iters
        if last or _divides(config.logging.eval_interval, state.iteration):
            _validate(run, valid, reporter, stops)
        stop = stops.reason()
        if stop is None and _divides(config.checkpoint.exit_interval, state.iteration):
            stop = "--exit-interval"
        with reporter.phases("checkpoint"):
            checkpoints.poll()
            if last or stop or _divides(config.checkpoint.save_interval, state.iteration):
                checkpoints.save(state)
            if last or stop:
                checkpoints.finish()
        if stop and not last:
            folder = Path(config.checkpoint.save)
            reporter.say(f"stopped at step {state.iteration} by {stop}; continue with --load {folder}")
            break
    if state.iteration == train_iters == 0:
        with reporter.phases("checkpoint"):
            checkpoints.save(state)
            checkpoints.finish()
    reporter.finish("finished" if state.iteration == train_iters else f"stopped by {stop}")
    return checkpoints


def _checkpoints(run: OpenRun, reporter: Reporter) -> Checkpoints:
    """Return what writes the run's checkpoints; the run folder gets its settings."""
    config, inputs = run.config, run.inputs
    config_yaml = yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)
    if distributed.rank() == 0:
        (Path(config.checkpoint.save) / "train_config.yaml").write_text(config_yaml)
    trained = None
    if run.train_iters:
        say, template = reporter.say, config.data.template
        trained = distributed.on_first_rank(lambda: trained_turns(inputs, template, say), "reading the data")
    return Checkpoints(config.checkpoint, config_yaml, inputs.hf, inputs.train, trained, reporter.say)


def _probe(run: OpenRun, reporter: Reporter) -> None:
    most = run.config.logging.probe_samples
    if most:
        with reporter.phases("validation"):
            reporter.probe(probe_data(run.config, run.state.model, run.inputs, most, reporter.progress))


def _validation_batches(run: OpenRun) -> Batches | None:
    if run.inputs.valid is None:
        return None
    return Batches(run.inputs.valid, run.config.batch, run.config.layout, data_parallel())


def _validate(run: OpenRun, valid: Batches | None, reporter: Reporter, stops: StopRequests) -> None:
    """Measure and report each source of the validation data, unless the run is told to stop meanwhile."""
    if valid is None:
        return
    started = time.perf_counter()
    by_source = {}
    for number, name in enumerate(valid.sources):
        total = valid.steps_in_order(number)
        if total == 0:  # all left out by --truncation
            continue
        steps = reporter.progress(f"validation on {name}", ahead(valid.in_order(number)), total)
        # It may take longer than the grace between a signal and the kill: what is cut short is not shown.
        steps = itertools.takewhile(lambda _: stops.reason() is None, steps)
        by_source[name] = validate(run.state.model, steps, run.criterion)
    seconds = time.perf_counter() - started
    reporter.phases.add({"validation": seconds})
    if stops.reason() is None:
        reporter.validation(run.state.iteration, by_source, seconds)


def _divides(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0
