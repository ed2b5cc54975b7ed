"""Settings that say what a run writes, when it writes a checkpoint, and when it stops early."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.training.config.flag import flag


@dataclass(frozen=True)
class CheckpointSettings:
    """The folders that the run writes, the steps after which it saves, and when it stops early."""

    save: str = flag(
        "",
        "This folder receives the run's configuration, metrics and checkpoints. It must be new, or the same "
        "as --load.",
    )
    save_hf: str | None = flag(
        None, "The trained model is also written into this folder, in Hugging Face's format."
    )
    save_hf_at_each_save: bool = flag(
        False,
        "A Hugging Face folder is written with every checkpoint; --save-hf then holds one folder for each: "
        "iter_0000100/, and so on.",
    )
    save_interval: int | None = flag(
        None,
        "A checkpoint is written every this many steps, and always after the last. Without it, only then.",
        above=0,
    )
    save_retain_interval: int | None = flag(
        None,
        "Of the older checkpoints only those are kept whose step is a multiple of this. Without it all are.",
        above=0,
    )
    most_recent_k: int | None = flag(
        None, "This many of the newest checkpoints are kept. Without it all are.", above=0
    )
    async_save: bool = flag(
        False, "Checkpoints are written in the background, from a copy in the memory of the host."
    )
    save_optim: bool = flag(
        True, "Checkpoints can be resumed. With --no-save-optim they hold only the weights."
    )
    exit_interval: int | None = flag(
        None, "The run saves and stops after a step that is a multiple of this.", above=0
    )
    exit_duration_in_mins: float | None = flag(
        None,
        "The run saves and stops after the step in which it becomes this many minutes old, as torchrun's "
        "process counts, over its restarts.",
        above=0,
    )
