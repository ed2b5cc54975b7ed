"""Sums over supervised tokens: small vectors that add up over micro-batches and ranks, and read as means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.runtime.distributed import data_group, pipeline_group

HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class TokenMeans:
    """Token means over a set of supervised tokens, the same on every rank."""

    tokens: int
    loss: float
    nll: float
    mean_p: float
    histogram: list[float]
    """Share of tokens with p in each of 20 equal bins of [0, 1]."""


def token_sums(loss: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """`[4 + bins]` float64 sums: tokens, loss, −log p, p, then the histogram of p. Inputs `[T]` float32."""
    log_p = log_p.detach()
    p = log_p.exp()
    sums = [torch.full_like(p, 1.0), loss.detach(), -log_p, p]
    totals = torch.stack(sums).sum(1, dtype=torch.float64)
    histogram = torch.histc(p, bins=HISTOGRAM_BINS, min=0.0, max=1.0).double()
    return torch.cat([totals, histogram])


def reduce_sums(micro_batches: list[torch.Tensor]) -> TokenMeans:
    """Add up the last stage's sums over micro-batches and data-parallel ranks, and tell every stage.

    Collectives: one all-reduce on the data-parallel group, one broadcast along the pipeline, of 24 floats.
    """
    # float32 over the wire would round; gloo and NCCL both take float64.
    total = torch.zeros(4 + HISTOGRAM_BINS, dtype=torch.float64, device=torch.cuda.current_device())
    for sums in micro_batches:
        total += sums
    dist.all_reduce(total, group=data_group())
    dist.broadcast(total, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=pipeline_group())
    tokens, loss, nll, p, *histogram = total.tolist()
    count = max(tokens, 1.0)
    return TokenMeans(int(tokens), loss / count, nll / count, p / count, [bin_ / count for bin_ in histogram])
