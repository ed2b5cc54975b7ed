"""The checkpoints of a run while it trains: they are written in turn, and old ones removed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_probsft.checkpoint.hf.export import save_hf_weights
from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns
from megatron_probsft.checkpoint.megatron.optimizer_state import inner_optimizers
from megatron_probsft.checkpoint.megatron.run_folder import (
    checkpoint_folder,
    hf_folder_of,
    prune,
    remove_leftovers,
)
from megatron_probsft.checkpoint.megatron.saving import Save
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.host_copies import HostCopies
from megatron_probsft.training.config.checkpoint import CheckpointSettings
from megatron_probsft.training.start.resume import content_to_save
from megatron_probsft.training.state import TrainState


class Checkpoints:
    """Writes a run's checkpoints. All ranks call every method; `trained` is used on the first one."""

    def __init__(
        self,
        settings: CheckpointSettings,
        config_yaml: str,
        hf: HFModel,
        data: TokenStore,
        trained: TrainedTurns | None,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._config_yaml, self._say = settings, config_yaml, say
        self._folder, self._data = Path(settings.save), data
        self._hf, self._trained = hf, trained
        self._saving: Save | None = None
        distributed.on_first_rank(lambda: remove_leftovers(self._folder), "removing half a checkpoint")
        self._copies: HostCopies | None = None

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of this step; with --async-save return as soon as the weights may change.

        Raises:
            UserError: it, or the one before it, could not be written.
        """
        self.finish()
        if self._settings.async_save and self._copies is None:
            self._copies = HostCopies()
            for inner in inner_optimizers(state.optimizer):
                self._copies.guard(inner.optimizer)
        content = content_to_save(state, self._data, save_optim=self._settings.save_optim)
        self._saving = Save(
            self._folder,
            state.iteration,
            content,
            SideFiles(self._hf.folder, self._config_yaml, self._trained),
            copies=self._copies,
        )
        if not self._settings.async_save:
            self.finish()
        if self._settings.save_hf_at_each_save:
            self._export(state, self._hf_target(state))

    def resumed(self, state: TrainState) -> None:
        """Write what was to be written with the checkpoint that was resumed. Raises as `save` does."""
        if self._settings.save_hf_at_each_save and not self._hf_target(state).exists():
            self._export(state, self._hf_target(state))

    def end(self, state: TrainState) -> None:
        """Write the trained model, after the last step. Raises as `save` does."""
        if self._settings.save_hf and not self._settings.save_hf_at_each_save:
            self._export(state, Path(self._settings.save_hf))

    def poll(self) -> None:
        """Complete what has been written meanwhile, after every step. Raises as `save` does."""
        if self._saving is not None and self._saving.is_written():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written. Raises as `save` does."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        checkpoint = saving.finish()
        self._say(f"saved {checkpoint}")
        # The one that was resumed, whose config.json and tokenizer these were, may be the next to be removed.
        self._hf = dataclasses.replace(self._hf, folder=hf_folder_of(checkpoint))
        newest, retained = self._settings.most_recent_k, self._settings.save_retain_interval
        removed = distributed.on_first_rank(
            lambda: prune(self._folder, newest, retained), "removing old checkpoints"
        )
        if removed:
            self._say(f"removed the checkpoints of steps {', '.join(map(str, removed))}")

    def _export(self, state: TrainState, target: Path) -> None:
        def remove() -> None:
            if self._settings.save_hf_at_each_save:
                shutil.rmtree(target, ignore_errors=True)  # of steps that are done again after a resume

        distributed.on_first_rank(remove, "removing an export")
        state.gather_weights()
        save_hf_weights(state.gpt, self._hf, target, self._trained)
        self._say(f"wrote {target}")

    def _hf_target(self, state: TrainState) -> Path:
        return checkpoint_folder(Path(str(self._settings.save_hf)), state.iteration)
