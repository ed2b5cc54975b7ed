"""Command line and YAML to a checked `TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import difflib
import importlib.util
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_probsft.data.text.named_templates import check_template_name
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import CHANGEABLE, TrainConfig


def parse_arguments(argv: list[str] | None = None) -> TrainConfig:
    """Read flags and the YAML file of `--config`; flags win.

    Raises:
        UserError: an unknown flag or key (with the nearest right one), a value of the wrong type or out
            of range, settings that contradict each other.
    """
    parser = Parser(prog="megatron_probsft.train", allow_abbrev=False)
    parser.add_argument("--config", default=None, help="YAML file with the same keys; flags win")
    add_flags(parser, [field.name for field in dataclasses.fields(TrainConfig)])
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = _read_yaml(Path(path)) if path else {}
    values.update(given)
    config = TrainConfig(**values)
    if not config.dry_run:  # which lists all problems
        check(config)
    return config


def check(config: TrainConfig) -> None:
    """Refuse settings that are wrong whatever the model, the data and the objective are.

    Raises:
        UserError: the first problem found.
    """
    for problem in problems_of(config):
        raise UserError(problem)


def objective_problems(config: TrainConfig) -> list[str]:
    """A line if --objective names none, or one that should not be minimised."""
    # Here: torch takes seconds to import, and other mistakes are found without it.
    from megatron_probsft.objectives.registry import ObjectiveError, get_objective, hidden_threshold

    try:
        objective = get_objective(config.objective)
        p = None if config.loss_denominator == "tokens" else hidden_threshold(objective)
    except ObjectiveError as error:
        return [str(error)]
    if p is None:
        return []
    return [
        f"--loss-denominator {config.loss_denominator} counts the tokens that the objective keeps, but "
        f"{config.objective} does not say that its gradient is cut off at p = {p:.3g}: give the function an "
        "attribute keeps, like f.keeps = lambda log_p: log_p.exp() >= 0.2"
    ]


def problems_of(config: TrainConfig) -> list[str]:
    """What `check` refuses; a line each."""
    problems: list[str] = []

    def require(condition: bool, message: str) -> None:
        if not condition:
            problems.append(message)

    require(
        bool(config.save) or config.dry_run,
        "--save is missing: the folder for this run's checkpoints and metrics",
    )
    require(bool(config.data), "--data is missing: .jsonl or .parquet files to train on")
    require(
        config.hf_model is not None or config.load is not None,
        "give --hf-model (start from a Hugging Face model) or --load (resume a run)",
    )
    require(
        config.hf_model is None
        or config.load is None
        or (config.load == config.save and not config.finetune),
        "--hf-model and --load together (resume what is there, or start) need --load to be the same as "
        "--save, without --finetune",
    )
    require(config.dry_run or not config.verbose, "--verbose belongs to --dry-run")
    for flag in ("finetune", "ckpt_step", "allow_changed"):
        value = getattr(config, flag)
        given = value not in (None, []) and value is not False  # step 0 is one
        require(not given or config.load is not None, f"--{_dashed(flag)} belongs to --load")
    for name in config.allow_changed:
        allowed = ["data", *map(_dashed, CHANGEABLE)]
        require(
            _dashed(name) in allowed,
            f"--allow-changed {name} is none of {', '.join(allowed)}{_nearest(name, allowed)}",
        )
    retain, every = config.save_retain_interval, config.save_interval
    require(
        retain is None or (every is not None and retain % every == 0),
        f"--save-retain-interval {retain} must be a multiple of --save-interval, {every}",
    )
    require(
        config.save_hf is not None or not config.save_hf_at_each_save,
        "--save-hf-at-each-save needs --save-hf, the folder for them",
    )
    require(
        (config.train_iters is None) != (config.train_epochs is None),
        "give one of --train-iters and --train-epochs",
    )
    positive = (
        "tensor_model_parallel_size", "pipeline_model_parallel_size", "seq_length", "global_batch_size",
        "micro_batch_size", "train_epochs", "eval_interval", "save_interval",
        "exit_interval", "log_interval", "lr", "adam_eps", "num_workers", "lr_wsd_decay_iters",
        "exit_duration_in_mins", "max_skipped_steps", "loss_chunk_tokens", "context_parallel_size",
        "expert_model_parallel_size",
        "recompute_num_layers", "save_retain_interval", "most_recent_k",
        "spike_factor", "probe_samples", "check_weight_hash_across_dp_replicas_interval",
    )  # fmt: skip
    for name in positive:
        value = getattr(config, name)
        require(value is None or value > 0, f"--{_dashed(name)} must be more than 0, got {value}")
    for name in ("min_lr", "weight_decay", "clip_grad", "lr_warmup_iters", "train_iters", "show_samples"):
        value = getattr(config, name)
        require(value is None or value >= 0, f"--{_dashed(name)} must not be negative, got {value}")
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        if type(value) is int and field.name != "seed":
            require(value < 2**31, f"--{_dashed(field.name)} must be below 2^31, got {value}")
    require(0 <= config.seed < 2**63, f"--seed must be at least 0 and below 2^63, got {config.seed}")
    for name in ("lr", "adam_eps", "weight_decay"):
        value = getattr(config, name)
        require(value < math.inf, f"--{_dashed(name)} must be a finite number, got {value}")
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(config, name)
        require(0 <= value < 1, f"--{_dashed(name)} must be in 0 ≤ β < 1, got {value}")
    require(config.min_lr <= config.lr, f"--min-lr {config.min_lr} is above --lr {config.lr}")
    fraction = config.lr_warmup_fraction
    require(
        fraction is None or 0 <= fraction < 1, f"--lr-warmup-fraction must be in 0 ≤ x < 1, got {fraction}"
    )
    require(
        fraction is None or config.lr_warmup_iters == 0,
        "give one of --lr-warmup-fraction and --lr-warmup-iters",
    )
    require(
        (config.lr_decay_style == "WSD") == (config.lr_wsd_decay_iters is not None),
        "--lr-wsd-decay-iters belongs to --lr-decay-style WSD, and WSD needs it",
    )
    require(
        config.packing or not config.fixed_pack_length,
        "--fixed-pack-length is a way of packing: not with --no-packing",
    )
    for file in sorted({file for file in config.valid_data if config.valid_data.count(file) > 1}):
        problems.append(f"--valid-data names {file} more than once")
    weights = config.data_weights
    require(
        weights is None or (len(weights) == len(config.data) and all(0 < w < math.inf for w in weights)),
        f"--data-weights takes a number above 0 for each of the {len(config.data)} of --data, got {weights}",
    )
    require(
        config.weight_key is None or config.loss_denominator == "tokens",
        f"--weight-key goes with --loss-denominator tokens only, not with {config.loss_denominator}",
    )
    cp = config.context_parallel_size
    require(
        cp <= 1 or config.seq_length % (2 * cp) == 0,
        f"--seq-length {config.seq_length} must be a multiple of 2 × --context-parallel-size, {2 * cp}",
    )
    require(
        not config.overlap_param_gather or (config.use_distributed_optimizer and config.overlap_grad_reduce),
        "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce",
    )
    require(
        (config.recompute_granularity == "full") == (config.recompute_method is not None)
        and (config.recompute_method is None) == (config.recompute_num_layers is None),
        "--recompute-granularity full needs --recompute-method and --recompute-num-layers, and only it does",
    )
    require(
        config.loss_kernels != "triton" or _has_cuda(),
        "--loss-kernels triton needs a CUDA device: leave it at auto here",
    )
    for flag in ("wandb_exp_name", "wandb_entity", "wandb_save_dir"):
        given = getattr(config, flag) is not None
        require(
            not given or config.wandb_project is not None, f"--{_dashed(flag)} belongs to --wandb-project"
        )
    require(
        config.wandb_project is None or importlib.util.find_spec("wandb") is not None,
        "--wandb-project needs the package wandb: pip install wandb",
    )
    try:
        check_template_name(config.template)
    except UserError as error:
        problems.append(str(error))
    try:
        datetime.date.fromisoformat(config.template_date or "2000-01-01")
    except ValueError:
        problems.append(f"--template-date {config.template_date} is no date: write YYYY-MM-DD")
    return problems


def _has_cuda() -> bool:
    from megatron_probsft.runtime.device import has_gpu  # here: see `objective_problems`

    return has_gpu()


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """The trainer's flags of these names; those that are not given are not in the parsed result."""
    for field in dataclasses.fields(TrainConfig):
        if field.name in names:
            _add_flag(parser, field)


class Parser(argparse.ArgumentParser):
    """Unknown flags and values of the wrong type are `UserError`s, with the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0].partition("=")[0]
            message = f"unknown flag {unknown}{_nearest(unknown, list(self._option_string_actions))}"
        raise UserError(message)


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    kind, is_list, choices = _type_of(field)
    default = field.default if field.default is not dataclasses.MISSING else []
    options: dict[str, Any] = {"help": f"{field.metadata['help']} (default: {default})".replace("%", "%%")}
    options["default"] = argparse.SUPPRESS
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options.update(type=kind, choices=choices, nargs="+" if is_list else None)
    parser.add_argument(f"--{_dashed(field.name)}", dest=field.name, **options)


def _type_of(field: dataclasses.Field) -> tuple[type, bool, list[str] | None]:
    """(scalar type, is a list, allowed values) of a field's annotation."""
    annotation = typing.get_type_hints(TrainConfig)[field.name]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # X | None
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True, None
    if typing.get_origin(annotation) is typing.Literal:
        return str, False, list(typing.get_args(annotation))
    return annotation, False, None


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml_mapping(path, "--config")
    if not content:
        raise UserError(f"--config {path} must hold keys and values, e.g. `lr: 5.0e-5`")
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise UserError(f"--config {path}: unknown key {key!r}{_nearest(name, list(fields))}")
        values[name] = _convert(fields[name], value, path)
    return values


def _convert(field: dataclasses.Field, value: Any, path: Path) -> Any:
    kind, is_list, choices = _type_of(field)
    if value is None and field.default is None:
        return None
    if is_list:
        try:
            return [kind(item) for item in (value if isinstance(value, list) else [value])]
        except (TypeError, ValueError):
            raise UserError(
                f"--config {path}: {field.name} should hold {kind.__name__}s, got {value!r}"
            ) from None
    wrong = f"--config {path}: {field.name} should be {kind.__name__}, got {value!r}"
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise UserError(wrong)
        return value
    try:
        converted = kind(value)  # YAML reads 5e-5 as text
    except (TypeError, ValueError):
        raise UserError(wrong) from None
    if (kind is int and converted != value) or (kind is str and not isinstance(value, str)):
        raise UserError(wrong)
    if choices and converted not in choices:
        raise UserError(f"--config {path}: {field.name} must be one of {', '.join(choices)}, got {value!r}")
    return converted


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; see --help for all"


def _dashed(name: str) -> str:
    return name.replace("_", "-")
