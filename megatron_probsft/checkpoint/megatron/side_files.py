"""The files that lie beside a checkpoint's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_probsft.checkpoint.hf.safetensors_folder import copy_side_files
from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, add_record


@dataclass(frozen=True)
class SideFiles:
    """The files that a later export, or a resumed run, needs beside the tensors."""

    hf_folder: Path
    """The folder that config.json and the tokenizer files are copied from."""
    config_yaml: str | None = None
    """The run's settings; None for a converted model."""
    trained: TrainedTurns | None = None
    """The ends of turns in what the model was trained on; None for a model that was not trained."""

    def write(self, checkpoint: Path) -> None:
        """Put them into a checkpoint's folder."""
        copy_side_files(self.hf_folder, checkpoint / "hf")
        if self.trained is not None:
            add_record(checkpoint / "hf", self.trained)
        if self.config_yaml is not None:
            (checkpoint / "train_config.yaml").write_text(self.config_yaml)
