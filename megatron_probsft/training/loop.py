"""The run: set up, train, validate, save."""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import yaml

from megatron_probsft.checkpoint.hf_weights import load_hf_weights, save_hf_weights
from megatron_probsft.checkpoint.run_folder import (
    find_checkpoint,
    hf_folder_of,
    newest_step,
    saved_steps,
)
from megatron_probsft.checkpoint.torch_dist import load_model
from megatron_probsft.data.token_store import TokenStore, build_token_store
from megatron_probsft.data.tokenizers import load_tokenizer
from megatron_probsft.models.build import HFModel, check_parallelism, read_hf_model
from megatron_probsft.objectives.registry import get_objective, with_statistic
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import START, Batches
from megatron_probsft.training.checkpoints import Checkpoints
from megatron_probsft.training.config import TrainConfig
from megatron_probsft.training.guards import check_replicas, save_batch
from megatron_probsft.training.metrics_file import drop_records_after
from megatron_probsft.training.preemption import StopRequests
from megatron_probsft.training.reporting import Reporter
from megatron_probsft.training.resume import check_same_run, load_state, position_of
from megatron_probsft.training.setup import TrainState, build_gpt, build_train_state, data_parallel, layout_of
from megatron_probsft.training.step import Criterion, train_step, validate
from megatron_probsft.vocab_parallel.head import HeadOptions


@dataclass(frozen=True)
class Inputs:
    """All that is known and checked before the model is built."""

    hf: HFModel
    checkpoint: Path | None
    train: TokenStore
    valid: TokenStore | None


def run(config: TrainConfig) -> TrainState:
    """Train as `config` says; collective over all processes.

    Raises:
        UserError: anything the user can mend, before the model is built wherever it can be known.
    """
    save = Path(config.save)
    hf, checkpoint = check_inputs(config)
    _say(f"starting {distributed.world_size()} process(es) on {checkpoint or config.hf_model}")
    distributed.initialize(
        config.tensor_model_parallel_size,
        config.pipeline_model_parallel_size,
        config.context_parallel_size,
        virtual_stages=config.num_virtual_stages_per_pipeline_rank,
        seed=config.seed,
    )
    inputs = Inputs(hf, checkpoint, *token_stores(config, hf))
    resumed = None if config.finetune else checkpoint
    start = position_of(resumed) if resumed else START
    batches = Batches(inputs.train, config, data_parallel(), start)
    train_iters = batches.train_iters()

    state = _build(config, inputs, train_iters)
    if resumed:
        _say(f"{config.load} has checkpoints of steps {', '.join(map(str, saved_steps(resumed.parent)))}")
        for note in load_state(state, resumed, config, inputs.train.digest):
            _say(note)
    save.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        drop_records_after(save, state.iteration)
    with (
        Reporter(config, hf.shape, train_iters, state.iteration) as reporter,
        StopRequests(config.exit_duration_in_mins) as stops,
    ):
        hf_folder = _train(config, state, inputs, batches, reporter, stops)
    if config.save_hf and state.iteration == train_iters:
        state.gather_weights()
        save_hf_weights(state.gpt, dataclasses.replace(hf, folder=hf_folder), Path(config.save_hf))
        reporter.say(f"wrote {config.save_hf}")
    return state


def check_inputs(config: TrainConfig) -> tuple[HFModel, Path | None]:
    """Everything that can be refused before process groups exist; reads only small files.

    Raises:
        UserError: a folder that exists or is missing, an unsupported model, a layout that does not divide.
    """
    save = Path(config.save)
    resuming_here = config.load is not None and Path(config.load).resolve() == save.resolve()
    if save.exists() and not resuming_here:
        raise UserError(f"--save {save} exists: choose a new folder, or resume it with --load {save}")
    if config.save_hf and Path(config.save_hf).exists():
        raise UserError(f"--save-hf {config.save_hf} exists: choose a new folder")
    checkpoint = None
    if config.load and (config.hf_model is None or _holds_checkpoint(Path(config.load))):
        checkpoint, _ = find_checkpoint(Path(config.load), config.ckpt_step)
    if checkpoint is not None and not config.finetune:
        check_same_run(checkpoint, config)
    hf = read_hf_model(hf_folder_of(checkpoint) if checkpoint else str(config.hf_model))
    check_parallelism(hf.shape, layout_of(config), distributed.world_size())
    positions = hf.shape.max_position_embeddings
    if config.seq_length > positions:
        raise UserError(f"--seq-length {config.seq_length} is more than the model's {positions} positions")
    return hf, checkpoint


def token_stores(config: TrainConfig, hf: HFModel) -> tuple[TokenStore, TokenStore | None]:
    """Tokenize on rank 0 while the others wait, then open the cache everywhere."""
    tokenizer = load_tokenizer(hf.folder)
    cache = Path(config.data_cache_path or Path(config.save).with_name("data_cache"))

    def build(files: list[str]) -> TokenStore:
        return build_token_store(
            files,
            tokenizer,
            template=config.template,
            seq_length=config.seq_length,
            vocab_size=hf.shape.vocab_size,
            truncation=config.truncation,
            cache_dir=cache,
            prompt_key=config.prompt_key,
            response_key=config.response_key,
            messages_key=config.messages_key,
            weight_key=config.weight_key,
            num_workers=config.num_workers,
            log=_say,
        )

    def both() -> tuple[TokenStore, TokenStore | None]:
        return build(config.data), build(config.valid_data) if config.valid_data else None

    outcome: list[tuple[TokenStore, TokenStore | None] | UserError | None] = [None]
    if distributed.rank() == 0:
        try:
            outcome[0] = both()
        except UserError as error:
            outcome[0] = error
    failure = [str(outcome[0]) if isinstance(outcome[0], UserError) else None]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise UserError(failure[0])
    return both() if outcome[0] is None else outcome[0]  # type: ignore[return-value]


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
) -> Path:
    """Returns where the model's config.json and tokenizer are."""
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
            by_source[name] = validate(state, steps, criterion)
        seconds = time.perf_counter() - started
        reporter.phases.add({"validation": seconds})
        if stops.reason() is None:
            reporter.validation(state.iteration, by_source, seconds)

    checkpoints = Checkpoints(config, config_yaml, inputs.hf.folder, inputs.train.digest, reporter.say)
    if state.iteration == 0:
        validate_now()
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
    return checkpoints.hf_folder


def _holds_checkpoint(run_folder: Path) -> bool:
    return run_folder.is_dir() and newest_step(run_folder) is not None


def _newest_checkpoint(run_folder: Path) -> str:
    step = newest_step(run_folder)
    return "there is no checkpoint yet" if step is None else f"the newest checkpoint is of step {step}"


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text, flush=True)


def _divides(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0
