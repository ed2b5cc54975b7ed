"""The comparison of a run with the one that its checkpoint is of, by their settings."""

from __future__ import annotations

from pathlib import Path

from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import TrainConfig, settings
from megatron_probsft.training.config.flag import dashed


def compare_runs(checkpoint: Path, config: TrainConfig) -> tuple[list[str], list[str]]:
    """Compare the settings of a checkpoint's run with these; one small file is read.

    Returns:
        The changes that --allow-changed asks for, a line each; and those that would make it another run,
        each with the setting, its old and its new value.
    """
    saved_file = checkpoint / "train_config.yaml"
    if not saved_file.is_file():
        return [], [f"{checkpoint} was not written by this trainer: use it with --finetune"]
    saved = read_yaml_mapping(saved_file)
    if "lr" not in saved:  # of every run
        return [], [f"{saved_file} is damaged: it holds no lr; use the checkpoint with --finetune"]
    changes, problems = [], []
    for kind in ("fixed", "same"):
        for name in (one.name for one in settings().values() if one.flag.resume == kind):
            old, new = saved.get(name), config.value(name)
            if old == new or (new is None and settings()[name].flag.by_device):
                continue  # the same, or `device_defaults` will take the old one
            if config.model.may_change(name):
                changes.append(f"--{dashed(name)} changed from {old} to {new}")
                continue
            advice = f"--allow-changed {dashed(name)}, " if kind == "same" else ""
            problems.append(
                f"--{dashed(name)} was {old} in {checkpoint} and is now {new}: give the same, {advice}or "
                "--finetune to start anew from its weights"
            )
    return changes, problems
