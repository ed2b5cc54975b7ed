"""Reads the command line of `probsft one-click` into a `Sweep`. Flags take underscores and hyphens alike."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from megatron_probsft.domains.domain import check_number
from megatron_probsft.domains.registry import domains
from megatron_probsft.evaluation.settings import check_numbers
from megatron_probsft.experiments.models import MODELS, SMOLLM2, named_model, other_model
from megatron_probsft.experiments.plan import Sweep, plan, prepare_flags, scores_own_test
from megatron_probsft.models.hf_model import read_raw_config
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.suggestions import nearest
from megatron_probsft.training.config.arguments import Parser, add_flags, parse_arguments
from megatron_probsft.training.config.config import settings

_OURS = (
    "hf_model", "load", "ckpt_step", "allow_changed", "finetune", "save", "save_hf", "save_hf_at_each_save",
    "data", "data_weights", "valid_data", "prompt_key", "response_key", "messages_key", "weight_key",
    "data_cache_path", "objective", "dry_run", "verbose", "seed",
)  # fmt: skip
"""The trainer's flags that a sweep gives itself."""
_TRAINER = "megatron_probsft.train"


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The sweep that the command line asks for, and what to do with it."""

    sweep: Sweep
    run: bool
    """True to run the sweep now, False to write its script."""


def read_command_line(argv: Sequence[str], description: str) -> CommandLine:
    """Read and check the command line.

    Raises:
        UserError: a name is unknown (with the nearest right one), or settings do not go together.
    """
    given = vars(_parser(description).parse_args([_hyphens(word) for word in argv]))
    trainer = settings().keys() - {"seed"}
    train = {name: given.pop(name) for name in list(given) if name in trainer}
    prepare, score = (_prefixed(given, prefix) for prefix in ("prepare_", "score_"))
    args = argparse.Namespace(**given)

    if args.dataset not in domains():
        raise UserError(f"--dataset {args.dataset} is unknown: {_meant(args.dataset, domains())}")
    for flag in ("trainer_objective_trans", "seed"):
        values = getattr(args, flag)
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"--{flag.replace('_', '-')} names {value} more than once")
    _check_model(args)
    _check_objectives(args.trainer_objective_trans)
    model = named_model(args.model_save_name) if args.model is None else other_model(args.model)
    if args.paper and model.name == SMOLLM2:
        raise UserError(f"--paper trains as the paper's code does, and {SMOLLM2} is no model of the paper's")
    gpus = _gpus(args)
    nproc = (gpus or 1) if args.nproc_per_node is None else args.nproc_per_node
    if nproc < 1:
        raise UserError(f"--nproc-per-node must be at least 1, got {nproc}")
    if gpus and nproc > gpus:
        raise UserError(f"--nproc-per-node {nproc} is more than the {gpus} GPU(s) there are to use")
    sweep = Sweep(
        args.dataset, model, args.trainer_objective_trans, args.seed, Path(args.output).resolve(), args.paper,
        gpus, args.cuda_visible_devices, nproc, prepare, train, score,
    )  # fmt: skip
    _check_data(sweep)
    check_numbers(score, "score-")
    for item in score.get("data", []):
        if not Path(item).exists():
            raise UserError(f"--score-data {item}: no such file or folder")
    for name in ("train", "test", "validation"):
        check_number(f"prepare-{name}", prepare.get(name))
    check_writable(sweep.folder, "--output")
    folders: dict[Path, str] = {}
    for objective, _, folder in sweep.runs:
        if (other := folders.setdefault(folder, objective)) != objective:
            raise UserError(
                f"--trainer-objective-trans: {other} and {objective} would share the folder {folder}"
            )
    from megatron_probsft.runtime.device import gpu_count  # here: it imports torch, which takes seconds

    if gpus == gpu_count():  # else the script is for another machine
        for step in plan(sweep):
            if _TRAINER in step.words:
                parse_arguments([*step.words[step.words.index(_TRAINER) + 1 :]])
    return CommandLine(sweep, args.run_script)


def _check_data(sweep: Sweep) -> None:
    """Raise UserError where there would be nothing to validate or to score on."""
    prepare = prepare_flags(sweep)
    if prepare.get("validation") == 0:
        raise UserError(
            "--prepare-validation 0: every run is validated on held-out training rows, give at least 1"
        )
    if not scores_own_test(sweep):
        return
    if prepare.get("test") == 0:
        raise UserError("--prepare-test 0 leaves nothing to score on: give at least 1, or --score-data")
    if "data" in prepare and "test_data" not in prepare:
        raise UserError("--prepare-data brings no puzzles to score on: give --prepare-test-data as well")


def _hyphens(word: str) -> str:
    """Write a flag with hyphens: --run_script=a_b becomes --run-script=a_b, whose value stays."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _check_model(args: argparse.Namespace) -> None:
    if (args.model_save_name is None) == (args.model is None):
        raise UserError(f"give one of --model-save-name ({', '.join(MODELS)}) and --model PATH_OR_ID")
    if args.model is None:
        named_model(args.model_save_name)
    else:
        read_raw_config(args.model)


# Below, torch is imported late: it takes seconds, and --help and most mistakes do without it.


def _check_objectives(names: Sequence[str]) -> None:
    from megatron_probsft.objectives.registry import ObjectiveError, get_objective

    for name in names:
        try:
            get_objective(name)
        except ObjectiveError as error:
            raise UserError(f"--trainer-objective-trans: {error}") from None


def _gpus(args: argparse.Namespace) -> int:
    """Return the number of GPUs that the runs have: those named, or else those of this machine."""
    from megatron_probsft.runtime.device import gpu_count  # here, as above

    there = gpu_count()
    if args.cuda_visible_devices is None:
        return there
    named = len([device for device in args.cuda_visible_devices.split(",") if device.strip()])
    if args.run_script and there < named:
        raise UserError(
            f"--cuda-visible-devices {args.cuda_visible_devices}: this machine has {there} GPU(s); leave "
            "it out, or leave --run-script out to write the script only"
        )
    return named


def _prefixed(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): given.pop(name) for name in list(given) if name.startswith(prefix)}


def _meant(name: str, known: Collection[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"use one of {', '.join(known)}"


def _parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--dataset", required=True, help=f"domain to train and to score in: {', '.join(domains())}")
    add("--model-save-name", help=f"model of the paper, or a small one: {', '.join(MODELS)}")
    add("--model", help="Hugging Face folder or hub id, instead of --model-save-name")
    add(
        "--trainer-objective-trans",
        nargs="+",
        required=True,
        help="objectives to train with: original, p, GeneralFamily-8, …",
    )
    add("--seed", nargs="+", type=int, default=[1], help="seeds of the data order, a run each (default: 1)")
    add("--run-script", action="store_true", help="run the commands; without it they are written as a script")
    add("--nproc-per-node", type=int, help="training processes (default: one per GPU, or 1 on the CPU)")
    add("--cuda-visible-devices", help="GPUs to use, for example 0,1 (default: all)")
    add("--paper", action="store_true", help="compute as the paper's code does, its templates included")
    add("--output", default="runs/one_click", help="folder for all results (default: %(default)s)")

    prepare = parser.add_argument_group("data", "flags of `probsft prepare-data`")
    for name, options in PREPARE_FLAGS.items():
        prepare.add_argument(f"--prepare-{name}", default=argparse.SUPPRESS, **options)
    score = parser.add_argument_group("evaluation", "flags of `probsft evaluate`")
    for name, options in SCORE_FLAGS.items():
        score.add_argument(f"--score-{name}", default=argparse.SUPPRESS, **options)
    add_flags(parser, settings().keys() - {*_OURS}, title="training: ")
    return parser


def _path(text: str) -> Path | str:
    """Return the absolute path of a file or folder that exists, and any other text as it is."""
    return Path(text).resolve() if Path(text).exists() else text


SCORE_FLAGS: dict[str, dict[str, Any]] = {
    "data": {"nargs": "+", "type": _path, "help": "benchmark files or folders to score on"},
    "limit": {"type": int, "help": "score on the first N problems only"},
    "samples": {"type": int, "help": "number of generations per problem"},
    "temperature": {"type": float, "help": "sampling temperature; 0 means greedy"},
    "max-new-tokens": {"type": int, "help": "longest generation, in tokens"},
    "dtype": {"choices": ["auto", "bfloat16", "float32"], "help": "auto means that vLLM chooses"},
    "tensor-parallel-size": {"type": int, "help": "number of GPUs that share the model"},
    "data-parallel-size": {"type": int, "help": "number of engines side by side; all GPUs without it"},
}
PREPARE_FLAGS: dict[str, dict[str, Any]] = {
    "generate": {"action": argparse.BooleanOptionalAction, "help": "generate the data, without the hub"},
    "data": {"nargs": "+", "type": _path, "help": "files, folders or hub data sets to train on"},
    "test-data": {"nargs": "+", "type": _path, "help": "files, folders or hub data sets to score on"},
    "train": {"type": int, "help": "take the first N rows only, the validation rows among them"},
    "validation": {"type": int, "help": "number of training rows to hold out"},
    "test": {"type": int, "help": "take the first N test rows only"},
}
