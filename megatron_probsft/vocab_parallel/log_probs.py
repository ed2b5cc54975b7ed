"""Log-probabilities of label tokens over vocabulary shards, without gathering logits.

Forward: one pass over the logits for (max, Σexp, label logit) per row, in float32, then ONE all-gather of
3 floats per token on the tensor-parallel group. Backward: no collective; the softmax is recomputed chunk by
chunk and the gradient overwrites the logits, rounded once. Nothing of size [T, V] is kept in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

_CHUNK_BYTES = 4 * 2**20
"""Rows are taken so many at a time that a float32 copy of them stays about within a core's cache."""


def token_log_probs(
    logits: torch.Tensor, labels: torch.Tensor, *, vocab_size: int, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """log p of each row's label under the softmax over the first `vocab_size` columns of all shards.

    Args:
        logits: `[T, V_local]` float32, bfloat16 or float16, rows contiguous: columns
            `rank·V_local … (rank+1)·V_local − 1` of the whole. **Overwritten by its gradient in backward.**
        labels: `[T]` int64, ids in the whole vocabulary, each in 0 … vocab_size − 1. No −100 here:
            unsupervised rows are left out before the head.
        vocab_size: the tokenizer's real vocabulary; columns from there on are padding, outside the softmax.
        group: the tensor-parallel group, or None for a single shard.

    Returns:
        `[T]` float32, the same on every rank of the group, differentiable once.

    Collectives: forward one all-gather of `[T, 3]` float32 (none for one shard or T = 0); backward none.
    """
    return _TokenLogProbs.apply(logits, labels, vocab_size, group)  # type: ignore[no-any-return]


class _TokenLogProbs(torch.autograd.Function):
    """d log p / d logits = onehot − softmax (arXiv 2510.00526 eq. 3 follows by the chain rule)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        tp = 1 if group is None else dist.get_world_size(group)
        first = 0 if group is None else dist.get_rank(group) * logits.shape[1]
        columns = min(max(vocab_size - first, 0), logits.shape[1])
        # Label column on this shard, or −1 where another shard owns it.
        local = torch.where((labels >= first) & (labels < first + columns), labels - first, -1)

        stats = _shard_statistics(logits, local, columns)
        if tp > 1 and len(labels):
            gathered = stats.new_empty(tp * len(labels), 3)
            dist.all_gather_into_tensor(gathered, stats, group=group)
            shard_max, shard_sum, shard_label = gathered.view(tp, -1, 3).unbind(-1)
            highest = shard_max.amax(0)
            total = (shard_sum * (shard_max - highest).exp()).sum(0)
            label_logit = shard_label.sum(0)
        else:
            highest, total, label_logit = stats.unbind(-1)
        log_total = total.log()
        ctx.save_for_backward(logits, local, highest, log_total)
        ctx.columns = columns
        ctx.consumed = False
        # Small differences first: exact where the label has nearly all the mass.
        return (label_logit - highest) - log_total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_log_p: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.consumed:
            raise RuntimeError("token_log_probs: backward ran twice, but the first overwrote the logits")
        ctx.consumed = True
        logits, local, highest, log_total = ctx.saved_tensors
        grad = logits.detach()
        for rows in _chunks(grad):
            z = grad[rows, : ctx.columns].float()
            upstream = grad_log_p[rows, None].float()
            z.sub_(highest[rows, None]).sub_(log_total[rows, None]).exp_().mul_(-upstream)
            owned = local[rows] >= 0
            z[owned, local[rows][owned]] += upstream[owned, 0]
            grad[rows, : ctx.columns] = z
        grad[:, ctx.columns :] = 0
        return grad, None, None, None


def _shard_statistics(logits: torch.Tensor, local: torch.Tensor, columns: int) -> torch.Tensor:
    """`[T, 3]` float32: max, Σexp(z − max) and the label's logit (0 where another shard owns the label)."""
    stats = logits.new_zeros(len(logits), 3, dtype=torch.float32)
    if columns == 0:  # a shard of padding only
        stats[:, 0] = -torch.inf
        return stats
    for rows in _chunks(logits):
        z = logits[rows, :columns].float()
        highest = z.amax(1)
        label = z.gather(1, local[rows].clamp(min=0)[:, None]).squeeze(1)
        stats[rows, 0] = highest
        stats[rows, 2] = torch.where(local[rows] >= 0, label, 0.0)
        # `.float()` of float32 logits is the caller's memory: never write into it.
        stats[rows, 1] = (z - highest[:, None]).exp_().sum(1)
    return stats


def _chunks(logits: torch.Tensor) -> list[slice]:
    size = max(1, _CHUNK_BYTES // (4 * max(1, logits.shape[1])))
    return [slice(i, i + size) for i in range(0, len(logits), size)]
