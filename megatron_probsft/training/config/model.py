"""Settings that say what a run starts from, and what is looked at before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.training.config.flag import flag
from megatron_probsft.training.throughput.cards import CardName


@dataclass(frozen=True)
class ModelSettings:
    """The Hugging Face model or the checkpoint that the run starts from."""

    hf_model: str | None = flag(
        None, "The run starts from this Hugging Face model: a folder, or the name of a model on the hub."
    )
    load: str | None = flag(
        None,
        "The run resumes the newest checkpoint of this run folder, exactly. If the folder is also --save and "
        "--hf-model is given, the run starts from --hf-model while the folder holds no checkpoint, so that "
        "one command line starts and restarts a job.",
    )
    ckpt_step: int | None = flag(
        None, "--load takes the checkpoint of this step instead of the newest one.", belongs_to="load"
    )
    allow_changed: list[str] = flag(
        [],
        "These settings may differ from those of the resumed run: data, lr, objective, and so on.",
        belongs_to="load",
    )
    finetune: bool = flag(
        False,
        "--load takes only the weights of the checkpoint, and the run starts at step 0.",
        belongs_to="load",
    )

    def may_change(self, name: str) -> bool:
        """Return whether --allow-changed names this setting (or "data"), in either spelling."""
        return name in (changed.replace("-", "_") for changed in self.allow_changed)


@dataclass(frozen=True)
class PreviewSettings:
    """A look at the run before it starts."""

    dry_run: bool = flag(
        False,
        "Nothing is trained: the run's settings and data are checked, all problems are listed, and sizes, "
        "memory and statistics of the data are printed.",
    )
    verbose: bool = flag(
        False,
        "--dry-run prints all settings, not only those that differ from the default.",
        belongs_to="dry_run",
    )
    show_samples: int = flag(
        0,
        "This many of the first samples are printed as text, with ⟦ ⟧ around what is trained. A dry run "
        "prints 2 if this is 0.",
        at_least=0,
    )
    world_size: int | None = flag(
        None,
        "--dry-run builds the run as this many processes with GPUs would, on any machine: a step of one "
        "process of each pipeline stage is run on tensors without contents, and its memory, operations and "
        "transfers are printed. Without --data every pack is full.",
        belongs_to="dry_run",
        above=0,
    )
    dry_run_json: str | None = flag(
        None, "The figures of --world-size are also written to this JSON file.", belongs_to="world_size"
    )
    gpu: CardName | None = flag(
        None,
        "The seconds of the step and the tokens per second of --world-size GPUs of this kind, eight in a "
        "node, are estimated from its data sheet, and what is taken for granted is printed.",
        belongs_to="world_size",
    )
    suggest_layout: bool = flag(
        False,
        "The layouts that fit into the memory of --gpu are printed, the fastest first, and the first is "
        "simulated instead of the given one.",
        belongs_to="gpu",
    )
