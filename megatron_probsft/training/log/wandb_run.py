"""A run's curves on Weights & Biases; the package is imported only where it is asked for."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import TrainConfig


class WandbRun:
    """One W&B run per run folder: its id is kept there, so that a resumed run continues its curves.

    Steps that are trained again after a kill are the same, bit for bit; W&B keeps the first of them.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        """Raises UserError where W&B does not start, e.g. not logged in; WANDB_MODE is the user's."""
        import wandb  # type: ignore[import-not-found]

        self._wandb = wandb
        id_file = folder / "wandb_run_id"
        if not id_file.is_file():
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=config.logging.wandb_project,
                name=config.logging.wandb_exp_name or folder.name,
                entity=config.logging.wandb_entity,
                dir=config.logging.wandb_save_dir or str(folder),
                id=id_file.read_text(),
                resume="allow",
                config=config.flat(),
            )
        except Exception as error:  # W&B's own kinds are many
            first_line = str(error).strip().partition("\n")[0]
            raise UserError(
                f"--wandb-project {config.logging.wandb_project}: W&B does not start: {first_line}; log in "
                "with `wandb login`, or keep the run on this disk with WANDB_MODE=offline"
            ) from error

    def log(self, iteration: int, values: dict[str, float], histograms: dict[str, np.ndarray]) -> None:
        """Numbers by name, and counts in equal bins of [0, 1] by name, at a step."""
        content: dict[str, Any] = dict(values)
        for name, counts in histograms.items():
            edges = np.linspace(0, 1, len(counts) + 1)
            content[name] = self._wandb.Histogram(np_histogram=(counts, edges))
        self._run.log(content, step=iteration)

    def close(self, *, failed: bool) -> None:
        """Send what is left; a failed run is shown as such."""
        self._run.finish(exit_code=int(failed))
