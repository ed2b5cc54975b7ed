"""Log-probabilities of label tokens over vocabulary shards, without gathering logits.

Forward: one pass over the logits for (max, Σexp, label logit) per row, in float32, then ONE all-gather of
3 floats per token on the tensor-parallel group. Backward: no collective; the softmax is recomputed from the
logits and the gradient overwrites them, rounded once. 6 bytes of traffic per bfloat16 logit (2 read; 2 read
and 2 written), nothing of size [T, V] beside the logits, 12 bytes and a label kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_probsft.vocab_parallel.shards import Kernels, PendingSoftmax, Shard, write_gradient
from megatron_probsft.vocab_parallel.token_softmax import TokenSoftmax


def token_log_probs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None,
    needs: Sequence[str] = (),
    kernels: Kernels = "auto",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return log p of each row's label, under the softmax over the first `vocab_size` columns of all shards.

    Args:
        logits: `[…, V_local]` float32, bfloat16 or float16: columns `rank·V_local … (rank+1)·V_local − 1`
            of the whole. Leading dimensions in any order in memory (a transposed `[s, b, V]` too).
            **Overwritten by their gradient in backward.**
        labels: `[…]` int64, ids in the whole vocabulary, or −100: such a row is not read, its log p is 0
            and its gradient 0; leave it out before f.
        vocab_size: the tokenizer's real vocabulary; columns from there on are padding, outside the softmax.
        group: the tensor-parallel group, or None for a single shard.
        needs: which of `entropy` (nats), `collision` (Σp²) and `correct` (the label is the argmax) to
            compute in the same pass.
        kernels: auto is Triton for CUDA tensors and torch for others.

    Returns:
        log p `[…]` float32, differentiable once, and the statistics asked, `[…]` each, without gradient
        (meaningless in rows of −100). The same on every rank of the group.

    Raises:
        ValueError: logits that cannot be seen as rows without a copy, or fewer columns than vocab_size.
        RuntimeError: a label outside the vocabulary; a second backward.

    Collectives: forward one all-gather of `[T, 3 + len(needs)]` float32 (none for one shard or T = 0);
    backward none.
    """
    shard = Shard(vocab_size, group, kernels)
    log_p, *statistics = _TokenLogProbs.apply(logits, labels, shard, tuple(needs))  # type: ignore[misc]
    return log_p, dict(zip(needs, statistics, strict=True))


class _TokenLogProbs(torch.autograd.Function):
    """Computes log p of the labels; its gradient d log p / d logits = onehot − softmax overwrites the logits.

    arXiv 2510.00526 eq. 3 follows by the chain rule.

    Shapes, with T rows (the product of the leading dimensions) and n = len(needs):
        logits `[…, V_local]`: this rank's columns; labels `[…]` int64, the same on every rank.
        Returned: log p `[…]` float32, then n statistics `[…]` without gradient, the same on every rank.
        Kept for backward: the logits, and `[T]` values: log p, highest, log_total (float32), the local label.

    Sharding: the vocabulary is cut over the group's ranks; rows are not.

    Collectives: forward one all-gather of `[T, 3 + n]` float32 (none for one rank or T = 0); backward none.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, shard: Shard, needs: tuple[str, ...]
    ) -> tuple[torch.Tensor, ...]:
        # The leading dimensions as they lie in memory: rows [T, V_local] without a copy.
        order = _memory_order(logits)
        in_order = labels.permute(order)
        # First pass over the logits, and the all-gather of what it finds.
        softmax = PendingSoftmax(_rows(logits, order), in_order.reshape(-1), shard, needs).wait()
        ctx.save_for_backward(logits, softmax.log_p, softmax.highest, softmax.log_total, softmax.local_labels)
        ctx.shard, ctx.order, ctx.consumed = shard, order, False
        # Back to the labels' own shape.
        inverse = [order.index(i) for i in range(len(order))]
        log_p, *statistics = (
            flat.view(in_order.shape).permute(inverse)
            for flat in (softmax.log_p, *(softmax.statistics[name] for name in needs))
        )
        ctx.mark_non_differentiable(*statistics)
        return log_p, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_log_p: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None, None]:
        if ctx.consumed:
            raise RuntimeError("token_log_probs: backward ran twice, but the first overwrote the logits")
        ctx.consumed = True
        # Second pass: the logits become their gradient, in place.
        logits, log_p, highest, log_total, local_labels = ctx.saved_tensors
        grad = logits.detach()
        softmax = TokenSoftmax(log_p, {}, highest, log_total, local_labels)
        upstream = grad_log_p.permute(ctx.order).reshape(-1)
        write_gradient(_rows(grad, ctx.order), softmax, ctx.shard, upstream)
        return grad, None, None, None


def _memory_order(logits: torch.Tensor) -> list[int]:
    """Return the leading dimensions, widest stride first: in that order they are rows one after the other."""
    return sorted(range(logits.dim() - 1), key=lambda d: -logits.stride(d))


def _rows(logits: torch.Tensor, order: list[int]) -> torch.Tensor:
    try:
        return logits.permute(*order, -1).view(-1, logits.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and strides {logits.stride()} are no rows without "
            "a copy; pass .contiguous()"
        ) from None
