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
    gpu: CardName | None = flag(
        None,
        "--dry-run also estimates the seconds of a step and the tokens per second on this GPU, eight in a "
        "node, from its data sheet, and prints what it takes for granted.",
        belongs_to="dry_run",
    )
    suggest_layout: bool = flag(
        False,
        "--dry-run prints the layouts that fit into the memory of --gpu, the fastest first, and their flags.",
        belongs_to="gpu",
    )
