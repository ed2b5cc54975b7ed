"""The micro-batches of one step on this rank, cut from the token store."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_probsft.data.order import Blend, sample_indices
from megatron_probsft.data.packing import make_microbatch, plan_step, plan_unpacked
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.models.context_parallel import local_positions
from megatron_probsft.runtime.device import even_length, host_tensor
from megatron_probsft.runtime.distributed import context_group
from megatron_probsft.training.config.batch import BatchSettings
from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.micro_batch import MicroBatch


@dataclass(frozen=True)
class Position:
    """The place that a run has reached."""

    iteration: int = 0
    consumed_samples: int = 0


START = Position()


@dataclass(frozen=True)
class Plan:
    """This rank's packs of a step: positions among the step's samples."""

    packs: list[list[int]]
    lengths: list[int]
    """The length that each pack is padded to; one for all unless --no-packing."""
    sample_multiples: list[int]
    """Each of a pack's samples is padded to a multiple of this."""
    efficiency: float
    """Real tokens ÷ computed tokens, over all ranks."""


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of a step: as many micro-batches as on every other rank."""

    micro_batches: list[MicroBatch]
    pack_length: int
    """The length of the longest micro-batch; of all of them unless --no-packing."""
    lengths: np.ndarray
    """Real tokens of each sample of the whole step, over all ranks."""
    efficiency: float
    """Real tokens ÷ computed tokens, over all ranks."""

    @property
    def samples(self) -> int:
        """Samples of the whole step, over all ranks."""
        return len(self.lengths)


class Batches:
    """The steps of a run over a token store: pure functions of the samples consumed so far."""

    def __init__(
        self,
        store: TokenStore,
        batch: BatchSettings,
        layout: LayoutSettings,
        data_parallel: tuple[int, int],
        *,
        weights: list[float] | None = None,
        start: Position = START,
    ) -> None:
        """Cut the store into steps for a rank of a data-parallel group: `data_parallel` is (rank, size).

        weights: shares of the sources among the training samples; None: every sample once per epoch.
        start: where a resumed run goes on, maybe with another global batch size than before.
        """
        self._store, self._settings, self._layout = store, batch, layout
        self._start = start
        self._rank, self._size = data_parallel
        self._blend = None if weights is None else Blend(store.source, weights, batch.seed)
        # Context parallelism cuts every sample into 2·cp parts, sequence parallelism every pack.
        cp = layout.context_parallel_size
        self._sample_multiple = 2 * cp if cp > 1 else 1
        self._align = self._sample_multiple
        # The interleaved schedule goes through a pipeline's length of micro-batches at a time.
        interleaved = layout.num_virtual_stages_per_pipeline_rank is not None
        self._microbatch_multiple = layout.pipeline_model_parallel_size if interleaved else 1
        if layout.sequence_parallel:
            self._align *= layout.tensor_model_parallel_size
        # Of packs alone: each rank's part is a whole number of a GPU's tiles, and lengths seldom differ.
        self._pack_align = math.lcm(self._align, even_length() * cp)

    def on_gpus(self) -> Batches:
        """Return the same samples in packs as processes with GPUs make them, whatever this one has."""
        batches = copy.copy(self)
        cp = self._layout.context_parallel_size
        batches._pack_align = math.lcm(self._align, even_length(gpu=True) * cp)
        return batches

    @property
    def sources(self) -> list[str]:
        """The names of the store's sources, by their numbers."""
        return self._store.sources

    @property
    def longest_pack(self) -> int:
        """The longest that a pack can be; the length of all with --fixed-pack-length."""
        capacity = self._settings.seq_length * self._settings.micro_batch_size
        return -(-capacity // self._pack_align) * self._pack_align

    def total_samples(self) -> int:
        """Return the number of samples that the run trains on, over all epochs."""
        if self._settings.train_iters is not None:
            steps_left = self._settings.train_iters - self._start.iteration
            return self._start.consumed_samples + steps_left * self._settings.global_batch_size
        assert self._settings.train_epochs is not None
        return math.ceil(self._settings.train_epochs * len(self._store))

    def train_iters(self) -> int:
        """Return the number of the run's steps; the last may be smaller than the global batch."""
        samples_left = self.total_samples() - self._start.consumed_samples
        return self._start.iteration + math.ceil(samples_left / self._settings.global_batch_size)

    def training_step(self, consumed_samples: int) -> StepBatch:
        """Return the step after `consumed_samples` samples, in the shuffled order of the seed."""
        indices = self._indices(consumed_samples)
        return self._step(indices, self._store.weight_scale(indices))

    def training_steps(self, consumed_samples: int) -> Iterator[StepBatch]:
        """Yield the steps after `consumed_samples` samples, up to the run's last."""
        while consumed_samples < self.total_samples():
            step = self.training_step(consumed_samples)
            yield step
            consumed_samples += step.samples

    def training_plan(self, consumed_samples: int) -> Plan:
        """Return how that step is cut, without its tokens."""
        return self._plan(self._indices(consumed_samples))

    def sample_sizes(self, consumed_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens and the labels of each sample of that step, over all ranks."""
        indices = self._indices(consumed_samples)
        return self._store.lengths[indices], self._store.supervised[indices]

    def in_order(self, source: int, most: int | None = None) -> Iterator[StepBatch]:
        """Yield every sample of a source once, in its order, or `most` of them at even distances.

        Weights are relative to the whole pass: its token mean of the steps' losses is the weighted mean.
        """
        samples = self._samples_of(source, most)
        scale = self._store.weight_scale(samples)
        for first in range(0, len(samples), self._settings.global_batch_size):
            yield self._step(samples[first : first + self._settings.global_batch_size], scale)

    def steps_in_order(self, source: int, most: int | None = None) -> int:
        """Return the number of steps that `in_order` gives."""
        return math.ceil(len(self._samples_of(source, most)) / self._settings.global_batch_size)

    def _samples_of(self, source: int, most: int | None) -> np.ndarray:
        samples = np.flatnonzero(self._store.source == source)
        if most is None or most >= len(samples):
            return samples
        return samples[np.arange(most) * len(samples) // most]

    def _indices(self, consumed_samples: int) -> np.ndarray:
        count = min(self._settings.global_batch_size, self.total_samples() - consumed_samples)
        if self._blend is not None:
            return self._blend.sample_indices(consumed_samples, count)
        return sample_indices(consumed_samples, count, len(self._store), self._settings.seed)

    def _plan(self, indices: np.ndarray) -> Plan:
        capacity = self._settings.seq_length * self._settings.micro_batch_size
        multiple = self._sample_multiple
        real = self._store.lengths[indices] - 1
        lengths = -(-real // multiple) * multiple
        if self._settings.packing:
            plan = plan_step(lengths, self._size, capacity, self._pack_align, self._microbatch_multiple)
            lengths_of = plan.lengths
            if self._settings.fixed_pack_length:
                lengths_of = [[self.longest_pack] * len(rank) for rank in plan.packs]
            multiples = [multiple] * len(plan.packs[self._rank])
        else:
            plan = plan_unpacked(
                lengths, self._size, self._settings.micro_batch_size, self._align, self._microbatch_multiple
            )
            lengths_of = plan.lengths
            multiples = [  # pads every sample to its micro-batch's longest
                length // max(len(pack), 1)
                for length, pack in zip(lengths_of[self._rank], plan.packs[self._rank], strict=True)
            ]
        computed = sum(map(sum, lengths_of))
        own = plan.packs[self._rank], lengths_of[self._rank], multiples
        return Plan(*own, float(real.sum()) / computed)

    def _step(self, indices: np.ndarray, weight_scale: float) -> StepBatch:
        plan = self._plan(indices)
        micro_batches = [
            self._micro_batch(indices[np.asarray(pack, int)], length, multiple, weight_scale)
            for pack, length, multiple in zip(plan.packs, plan.lengths, plan.sample_multiples, strict=True)
        ]
        return StepBatch(micro_batches, max(plan.lengths), self._store.lengths[indices] - 1, plan.efficiency)

    def _micro_batch(
        self, indices: np.ndarray, pack_length: int, sample_multiple: int, weight_scale: float
    ) -> MicroBatch:
        arrays: dict[str, Any] = make_microbatch(self._store, indices.tolist(), pack_length, sample_multiple)
        tokens, labels, weights = arrays["tokens"], arrays["labels"], arrays.get("weights")
        bounds = tuple(arrays["cu_seqlens"].tolist())
        if self._layout.context_parallel_size > 1:
            group = context_group()
            here = local_positions(bounds, group.rank(), group.size())
            tokens, labels = tokens[here], labels[here]
            weights = None if weights is None else weights[here]
        rows = np.flatnonzero(labels >= 0)

        return MicroBatch(
            tokens=host_tensor(tokens)[None],
            position_ids=host_tensor(arrays["position_ids"])[None],
            cu_seqlens=host_tensor(arrays["cu_seqlens"]),
            max_seqlen=arrays["max_seqlen"],
            rows=host_tensor(rows),
            labels=host_tensor(labels[rows]),
            supervised_tokens=int((arrays["labels"] >= 0).sum()),
            weights=None if weights is None else host_tensor(weights[rows] * np.float32(weight_scale)),
            bounds=bounds,
        )
