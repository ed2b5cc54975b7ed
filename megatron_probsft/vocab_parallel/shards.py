"""The softmax of rows whose vocabulary lies in shards: one pass over this shard, one small collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from megatron_probsft.vocab_parallel import torch_kernels
from megatron_probsft.vocab_parallel.token_softmax import TokenSoftmax

Kernels = Literal["auto", "torch", "triton"]
IGNORED = -100
"""The label of a row to leave out."""


@dataclass(frozen=True)
class Shard:
    """A rank's part of the vocabulary, which its logits are of, and the kernels of its passes."""

    vocab_size: int
    """Columns from there on, counted over all shards, are padding outside the softmax."""
    group: dist.ProcessGroup | None
    """The tensor-parallel group, or None where the whole vocabulary is here."""
    kernels: Kernels = "auto"
    """auto: Triton for CUDA tensors, torch for others."""

    @property
    def ranks(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)


class PendingSoftmax:
    """The softmax of rows whose statistics are on their way between the shards.

    Collectives: one all-gather of `[T, 3 + len(needs)]` float32 over the group, started here and awaited in
    `wait`; none for a single shard or T = 0.
    """

    def __init__(
        self, logits: torch.Tensor, labels: torch.Tensor, shard: Shard, needs: Sequence[str]
    ) -> None:
        """Pass once over logits `[T, V_local]`; labels `[T]` int64, ids in the whole vocabulary or −100."""
        if shard.vocab_size > shard.ranks * logits.shape[-1]:
            raise ValueError(
                f"vocab_size {shard.vocab_size} is more than {shard.ranks} × {logits.shape[-1]} columns"
            )
        torch.ops.aten._assert_async.msg(
            ((labels == IGNORED) | ((labels >= 0) & (labels < shard.vocab_size))).all(),
            "a label is neither −100 nor in 0 … vocab_size − 1",
        )
        self._labels, self._needs = labels, needs
        first = shard.rank * logits.shape[1]
        columns = columns_of(logits, shard)
        here = (labels >= first) & (labels < first + columns)
        self._local = torch.where(here, labels - first, torch.where(labels == IGNORED, IGNORED, -1))
        stats = kernels_for(logits, shard).shard_statistics(logits, self._local, columns, needs)
        if "correct" in needs:
            stats[:, 3 + needs.index("correct")] += first
        self._work = None
        self._stats = stats[None]
        if shard.ranks > 1 and len(labels):
            self._stats = stats.new_empty(shard.ranks, *stats.shape)
            self._work = dist.all_gather_into_tensor(
                self._stats.flatten(0, 1), stats, group=shard.group, async_op=True
            )

    def wait(self) -> TokenSoftmax:
        """Wait for all shards' statistics and combine them."""
        if self._work is not None:
            self._work.wait()
        shard_max, shard_sum, shard_label, *rest = self._stats.unbind(-1)
        extra = dict(zip(self._needs, rest, strict=True))
        highest = shard_max.amax(0)
        scale = (shard_max - highest).exp()
        total = (shard_sum * scale).sum(0)
        log_total = total.log()
        # Small differences first: exact where the label has nearly all the mass.
        log_p = (shard_label.sum(0) - highest) - log_total
        statistics: dict[str, torch.Tensor] = {}
        if "entropy" in extra:
            moment = (scale * (extra["entropy"] + (shard_max - highest) * shard_sum)).sum(0)
            statistics["entropy"] = log_total - moment / total
        if "collision" in extra:
            statistics["collision"] = (extra["collision"] * scale.square()).sum(0) / total.square()
        if "correct" in extra:
            # float32 holds ids exactly up to 2^24. A NaN maximum equals nothing: not correct.
            column = torch.where(shard_max == highest, extra["correct"], torch.inf).amin(0)
            statistics["correct"] = column == self._labels
        log_p = torch.where(self._labels == IGNORED, 0.0, log_p)
        return TokenSoftmax(log_p, statistics, highest, log_total, self._local)


def write_gradient(
    logits: torch.Tensor, softmax: TokenSoftmax, shard: Shard, grad_log_p: torch.Tensor
) -> None:
    """Overwrite logits `[T, V_local]` with grad_log_p `[T]` · (onehot − softmax); ignored rows with 0.

    The softmax is computed again from the logits, in float32, and rounded once. No collective.
    """
    upstream = torch.where(softmax.local_labels == IGNORED, 0.0, grad_log_p.float())
    kernels_for(logits, shard).write_gradient(logits, softmax, columns_of(logits, shard), upstream)


def columns_of(logits: torch.Tensor, shard: Shard) -> int:
    """Return how many of this shard's columns are real vocabulary."""
    width = logits.shape[-1]
    return min(max(shard.vocab_size - shard.rank * width, 0), width)


def kernels_for(logits: torch.Tensor, shard: Shard):
    """Return the module with the right `shard_statistics` and `write_gradient`."""
    if shard.kernels == "triton" or (shard.kernels == "auto" and logits.is_cuda):
        from megatron_probsft.vocab_parallel import triton_kernels  # only where Triton is wanted

        return triton_kernels
    return torch_kernels
