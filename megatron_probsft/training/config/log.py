"""Settings of the guards over a run, and of what it measures and reports."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.training.config.flag import flag


@dataclass(frozen=True)
class GuardSettings:
    """The guards that stop a run that goes wrong, or point at it."""

    max_skipped_steps: int = flag(
        5,
        "The run stops after this many steps in a row whose loss or gradient is not a finite number.",
        above=0,
    )
    spike_factor: float = flag(
        8.0,
        "A loss or gradient norm is reported as a spike if it is more than this many σ above the median of "
        "the last 50 steps.",
        above=0,
    )
    check_weight_hash_across_dp_replicas_interval: int | None = flag(
        None,
        "Every this many steps the run stops unless all data-parallel replicas hold the same weights. "
        "Without it they are not compared.",
        above=0,
    )


@dataclass(frozen=True)
class LoggingSettings:
    """The measurements and reports of the run."""

    eval_interval: int | None = flag(
        None,
        "The validation data are measured every this many steps, and always at the start and the end.",
        above=0,
    )
    probe_samples: int | None = flag(
        None,
        "Before step 1 the run measures how probable this many samples of each of --data are to the model, "
        "and says which objective fits.",
        above=0,
    )
    log_interval: int = flag(1, "A line is printed every this many steps.", above=0)
    log_entropy: bool = flag(False, "The mean entropy of the model's distribution is reported too, in nats.")
    wandb_project: str | None = flag(
        None,
        "The run reports to this project on Weights & Biases too. WANDB_MODE works as usual.",
    )
    wandb_exp_name: str | None = flag(
        None,
        "The run has this name on Weights & Biases. Without it, that is the name of the run folder.",
        belongs_to="wandb_project",
    )
    wandb_entity: str | None = flag(
        None, "The project belongs to this user or team on Weights & Biases.", belongs_to="wandb_project"
    )
    wandb_save_dir: str | None = flag(
        None,
        "Weights & Biases keeps its files in this folder. Without it, that is the run folder.",
        belongs_to="wandb_project",
    )
