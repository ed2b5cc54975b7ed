"""The samples of one step, by their lengths alone: enough for the run's own packing and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.training.batches import Batches, StepBatch
from megatron_probsft.training.config.config import TrainConfig


@dataclass(frozen=True)
class StepSamples:
    """The samples of a step over all ranks, in any order."""

    lengths: tuple[int, ...]
    """The tokens of each sample; one less go through the model."""
    supervised: tuple[int, ...]
    """The labels of each sample, at most `lengths` − 1."""


def full_packs(config: TrainConfig) -> StepSamples:
    """Return the samples of a step without data: each fills --seq-length, and all its labels are trained."""
    size, length = config.batch.global_batch_size, config.batch.seq_length
    return StepSamples((length + 1,) * size, (length,) * size)


def micro_batches_of(config: TrainConfig, samples: StepSamples, data_parallel: tuple[int, int]) -> StepBatch:
    """Return the step of one rank, (rank, size), of the data-parallel group, on the CPU.

    It is cut by the run's own `Batches`; with --no-packing as if each sample were as long as the longest.
    Process groups must exist.
    """
    size = len(samples.lengths)
    if not config.batch.packing:
        samples = StepSamples((max(samples.lengths),) * size, (max(samples.supervised),) * size)
    batch = config.replace(global_batch_size=size, train_iters=1, train_epochs=None).batch
    return Batches(store_of(samples), batch, config.layout, data_parallel).training_step(0)


def store_of(samples: StepSamples) -> TokenStore:
    """Return samples of these lengths as `Batches` takes them: tokens are 0, the last ones are trained."""
    return cast(TokenStore, _Store(samples))


class _Store:
    """The part of a token store that `Batches` reads."""

    def __init__(self, samples: StepSamples) -> None:
        self.lengths = np.asarray(samples.lengths, np.int64)
        self.supervised = np.asarray(samples.supervised, np.int64)
        self.source = np.zeros(len(self.lengths), np.int64)
        self.sources = ["-"]
        self.weights = None

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        length = int(self.lengths[index])
        return np.zeros(length, np.int64), np.arange(length) >= length - self.supervised[index]

    def weight_scale(self, indices: np.ndarray) -> float:
        return 1.0
