"""From the token store to the micro-batches of one step on this rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_probsft.data.order import Blend, sample_indices
from megatron_probsft.data.packing import make_microbatch, plan_step, plan_unpacked
from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.models.context_parallel import local_positions
from megatron_probsft.runtime.device import current_device
from megatron_probsft.runtime.distributed import context_group
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import TrainConfig


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    iteration: int = 0
    consumed_samples: int = 0


START = Position()


@dataclass(frozen=True)
class MicroBatch:
    """One pack on the current device; s is the step's pack length, s' = s / cp this rank's part of it.

    tokens `[1, s']`, position_ids `[1, s]` int64; cu_seqlens `[n + 1]` int32, of the whole pack; rows `[T]`
    int64, the supervised positions among the s'; labels `[T]` int64, their next tokens.
    """

    tokens: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    rows: torch.Tensor
    labels: torch.Tensor
    supervised_tokens: int
    """Of the whole pack, over the context-parallel ranks that share it."""
    weights: torch.Tensor | None = None
    """`[T]` float32, of the labels, whose sum over the step is the step's number of labels; None: all 1."""


@dataclass(frozen=True)
class Plan:
    """This rank's packs of a step: positions among the step's samples."""

    packs: list[list[int]]
    lengths: list[int]
    """What each pack is padded to; one length for all unless --no-packing."""
    sample_multiples: list[int]
    """What each of a pack's samples is padded to a multiple of."""
    efficiency: float
    """Real tokens ÷ computed tokens, over all ranks."""


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of a step: as many micro-batches as on every other rank."""

    micro_batches: list[MicroBatch]
    pack_length: int
    """Of the longest micro-batch; of all of them unless --no-packing."""
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
        config: TrainConfig,
        data_parallel: tuple[int, int],
        start: Position = START,
    ) -> None:
        """start: where a resumed run goes on, maybe with another global batch size than before.

        Raises:
            UserError: the data have weights and --loss-denominator is not `tokens`; --data-weights names a
                source of which no sample is left.
        """
        self._store = store
        self._config = config
        self._start = start
        self._rank, self._size = data_parallel
        if store.weights is not None and config.loss_denominator != "tokens":
            raise UserError(f"--loss-denominator {config.loss_denominator} does not go with weighted data")
        self._blend = None if config.data_weights is None else self._make_blend(config.data_weights)
        # Context parallelism cuts every sample into 2·cp parts, sequence parallelism every pack.
        self._sample_multiple = 2 * config.context_parallel_size if config.context_parallel_size > 1 else 1
        self._align = self._sample_multiple
        # The interleaved schedule goes through a pipeline's length of micro-batches at a time.
        interleaved = config.num_virtual_stages_per_pipeline_rank is not None
        self._microbatch_multiple = config.pipeline_model_parallel_size if interleaved else 1
        if config.sequence_parallel:
            self._align *= config.tensor_model_parallel_size

    def total_samples(self) -> int:
        """Samples the run trains on, over all epochs."""
        if self._config.train_iters is not None:
            steps_left = self._config.train_iters - self._start.iteration
            return self._start.consumed_samples + steps_left * self._config.global_batch_size
        assert self._config.train_epochs is not None
        return math.ceil(self._config.train_epochs * len(self._store))

    def train_iters(self) -> int:
        """Optimizer steps of the run; the last may be smaller than the global batch."""
        samples_left = self.total_samples() - self._start.consumed_samples
        return self._start.iteration + math.ceil(samples_left / self._config.global_batch_size)

    def training_step(self, consumed_samples: int) -> StepBatch:
        """The step after `consumed_samples` samples, in the shuffled order of the seed."""
        indices = self._indices(consumed_samples)
        return self._step(indices, self._store.weight_scale(indices))

    def training_plan(self, consumed_samples: int) -> Plan:
        """How that step is cut, without its tokens."""
        return self._plan(self._indices(consumed_samples))

    def in_order(self, source: int, most: int | None = None) -> Iterator[StepBatch]:
        """Every sample of a source once, in its order, or `most` of them at even distances: for validation.

        Weights are relative to the whole pass: its token mean of the steps' losses is the weighted mean.
        """
        samples = self._samples_of(source, most)
        scale = self._store.weight_scale(samples)
        for first in range(0, len(samples), self._config.global_batch_size):
            yield self._step(samples[first : first + self._config.global_batch_size], scale)

    def steps_in_order(self, source: int, most: int | None = None) -> int:
        """How many steps `in_order` gives."""
        return math.ceil(len(self._samples_of(source, most)) / self._config.global_batch_size)

    def _samples_of(self, source: int, most: int | None) -> np.ndarray:
        samples = np.flatnonzero(self._store.source == source)
        if most is None or most >= len(samples):
            return samples
        return samples[np.arange(most) * len(samples) // most]

    def _make_blend(self, weights: list[float]) -> Blend:
        sizes = np.bincount(self._store.source, minlength=len(weights))
        for name, size, weight in zip(self._store.sources, sizes, weights, strict=True):
            if size == 0:
                raise UserError(
                    f"{name}: none of its samples is left at --seq-length {self._config.seq_length}, but "
                    f"--data-weights gives it {weight}"
                )
        return Blend(self._store.source, weights, self._config.seed)

    def _indices(self, consumed_samples: int) -> np.ndarray:
        count = min(self._config.global_batch_size, self.total_samples() - consumed_samples)
        if self._blend is not None:
            return self._blend.sample_indices(consumed_samples, count)
        return sample_indices(consumed_samples, count, len(self._store), self._config.seed)

    def _plan(self, indices: np.ndarray) -> Plan:
        capacity = self._config.seq_length * self._config.micro_batch_size
        multiple = self._sample_multiple
        real = self._store.lengths[indices] - 1
        lengths = -(-real // multiple) * multiple
        if self._config.packing:
            plan = plan_step(lengths, self._size, capacity, self._align, self._microbatch_multiple)
            lengths_of = plan.lengths
            if self._config.fixed_pack_length:
                length = -(-capacity // self._align) * self._align
                lengths_of = [[length] * len(rank) for rank in plan.packs]
            multiples = [multiple] * len(plan.packs[self._rank])
        else:
            plan = plan_unpacked(
                lengths, self._size, self._config.micro_batch_size, self._align, self._microbatch_multiple
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
        if self._config.context_parallel_size > 1:
            group = context_group()
            here = local_positions(arrays["cu_seqlens"].tolist(), group.rank(), group.size()).numpy()
            tokens, labels = tokens[here], labels[here]
            weights = None if weights is None else weights[here]
        rows = np.flatnonzero(labels >= 0)

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(current_device(), non_blocking=True)

        return MicroBatch(
            tokens=on_device(tokens)[None],
            position_ids=on_device(arrays["position_ids"])[None],
            cu_seqlens=on_device(arrays["cu_seqlens"]),
            max_seqlen=arrays["max_seqlen"],
            rows=on_device(rows),
            labels=on_device(labels[rows]),
            supervised_tokens=int((arrays["labels"] >= 0).sum()),
            weights=None if weights is None else on_device(weights[rows] * np.float32(weight_scale)),
        )
