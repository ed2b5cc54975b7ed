"""Sums over supervised tokens: small vectors, added over micro-batches and ranks, and read as means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.runtime.device import ToHost, current_device
from megatron_probsft.runtime.distributed import data_group

HISTOGRAM_BINS = 20
_SUMS = 6


@dataclass(frozen=True)
class TokenMeans:
    """Means over a set of supervised tokens, the same on every rank."""

    tokens: int
    loss: float
    """The weighted mean where data are weighted; everything else here counts each token once."""
    nll: float
    mean_p: float
    histogram: list[float]
    """Share of tokens with p in each of 20 equal bins of [0, 1]."""
    entropy: float | None = None
    """The entropy of the model's distribution, in nats, where it was computed."""

    def share_below(self, p: float) -> float:
        """Return the share of tokens with a smaller probability than p, a multiple of 0.05."""
        return sum(self.histogram[: round(p * HISTOGRAM_BINS)])

    def share_above(self, p: float) -> float:
        """Return the share of tokens with probability p, a multiple of 0.05, or more."""
        return sum(self.histogram[round(p * HISTOGRAM_BINS) :])


def token_sums(
    loss: torch.Tensor, log_p: torch.Tensor, count: torch.Tensor, entropy: torch.Tensor | None
) -> torch.Tensor:
    """Return `[6 + bins]` float64 sums: count, tokens, loss, −log p, p, entropy or 0, the histogram of p.

    loss, log_p and entropy are `[T]` float32; count is what the micro-batch adds to the loss's denominator.
    """
    p = log_p.exp()
    entropy = torch.zeros_like(p) if entropy is None else entropy
    totals = torch.stack([torch.ones_like(p), loss, -log_p, p, entropy]).sum(1, dtype=torch.float64)
    histogram = torch.histc(p, bins=HISTOGRAM_BINS, min=0.0, max=1.0).double()
    return torch.cat([count.double().reshape(1), totals, histogram])


class ComingMeans:
    """Means that are on their way from the device; nothing waits for them before they are read."""

    def __init__(self, total: torch.Tensor, *, with_entropy: bool) -> None:
        """total: `token_sums`, over all micro-batches and ranks."""
        self._total, self._with_entropy = ToHost(total), with_entropy

    def read(self) -> TokenMeans:
        """Return the means, once they are there."""
        count, tokens, loss, nll, p, entropy, *histogram = self._total.tolist()
        n = max(tokens, 1.0)
        return TokenMeans(
            int(tokens),
            loss / max(count, 1.0),
            nll / n,
            p / n,
            [bin_ / n for bin_ in histogram],
            entropy / n if self._with_entropy else None,
        )


def reduce_sums(micro_batches: list[torch.Tensor], *, with_entropy: bool) -> ComingMeans:
    """Add the last stage's sums over micro-batches and data-parallel ranks, and give every stage the means.

    A value that is not finite on one rank is so on all, also where only one tensor-parallel rank has it.

    Collectives: two all-reduces of 26 floats, over the data-parallel and the model-parallel (TP × PP) group.
    """
    # float32 over the wire would round; gloo and NCCL both take float64.
    total = torch.zeros(_SUMS + HISTOGRAM_BINS, dtype=torch.float64, device=current_device())
    for sums in micro_batches:
        total += sums
    dist.all_reduce(total, group=data_group())
    # The other stages have zeros, and the last stage's tensor-parallel ranks the same values.
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    total /= parallel_state.get_tensor_model_parallel_world_size()
    return ComingMeans(total, with_entropy=with_entropy)


def combine(parts: Sequence[TokenMeans]) -> TokenMeans:
    """Return the means over all tokens of disjoint sets, whose losses are means over their tokens."""
    tokens = sum(part.tokens for part in parts)

    def mean(values: Iterable[float]) -> float:
        weighted = (value * part.tokens for value, part in zip(values, parts, strict=True))
        return sum(weighted) / max(tokens, 1)

    entropies = [part.entropy for part in parts if part.entropy is not None]
    return TokenMeans(
        tokens,
        mean(part.loss for part in parts),
        mean(part.nll for part in parts),
        mean(part.mean_p for part in parts),
        [mean(column) for column in zip(*(part.histogram for part in parts), strict=True)],
        mean(entropies) if entropies else None,
    )
