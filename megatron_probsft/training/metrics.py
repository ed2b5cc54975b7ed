"""Sums over supervised tokens: small vectors that add up over micro-batches and ranks, and read as means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.runtime.distributed import data_group

HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class TokenMeans:
    """Token means over a set of supervised tokens, the same on every rank."""

    tokens: int
    loss: float
    """Of weighted data the weighted mean; everything else here counts each token once."""
    nll: float
    mean_p: float
    histogram: list[float]
    """Share of tokens with p in each of 20 equal bins of [0, 1]."""

    def share_below(self, p: float) -> float:
        """Of tokens; p a multiple of 0.05."""
        return sum(self.histogram[: round(p * HISTOGRAM_BINS)])

    def share_above(self, p: float) -> float:
        """Of tokens, p itself included; p a multiple of 0.05."""
        return sum(self.histogram[round(p * HISTOGRAM_BINS) :])


def token_sums(loss: torch.Tensor, log_p: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`[5 + bins]` float64 sums: count, tokens, loss, −log p, p, then the histogram of p.

    loss and log_p `[T]` float32; count: what the micro-batch adds to the loss's denominator.
    """
    p = log_p.exp()
    totals = torch.stack([torch.ones_like(p), loss, -log_p, p]).sum(1, dtype=torch.float64)
    histogram = torch.histc(p, bins=HISTOGRAM_BINS, min=0.0, max=1.0).double()
    return torch.cat([count.double().reshape(1), totals, histogram])


def reduce_sums(micro_batches: list[torch.Tensor]) -> TokenMeans:
    """Add up the last stage's sums over micro-batches and data-parallel ranks, and tell every stage.

    A value that is not finite on one rank is so on all, also where only one tensor-parallel rank has it.

    Collectives: two all-reduces of 25 floats, over the data-parallel and the model-parallel (TP × PP) group.
    """
    # float32 over the wire would round; gloo and NCCL both take float64.
    total = torch.zeros(5 + HISTOGRAM_BINS, dtype=torch.float64, device=torch.cuda.current_device())
    for sums in micro_batches:
        total += sums
    dist.all_reduce(total, group=data_group())
    # The other stages have zeros, and the last stage's tensor-parallel ranks the same values.
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    total /= parallel_state.get_tensor_model_parallel_world_size()
    count, tokens, loss, nll, p, *histogram = total.tolist()
    n = max(tokens, 1.0)
    return TokenMeans(int(tokens), loss / max(count, 1.0), nll / n, p / n, [bin_ / n for bin_ in histogram])
