"""The output head's arguments and results: its matrix, the supervised tokens, its options, their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from megatron_probsft.vocab_parallel.shards import Kernels, Shard

LossPath = Literal["auto", "materialized", "fused"]


@dataclass(frozen=True)
class OutputHead:
    """This rank's shard of the output matrix, and how the whole is spread over the tensor-parallel group."""

    weight: torch.Tensor
    """`[V_local, h]`, of the output layer or of the embedding that is tied to it."""
    vocab_size: int
    """Columns from there on, counted over all shards, are padding outside the softmax."""
    group: dist.ProcessGroup | None
    """The tensor-parallel group, or None where the whole vocabulary is here."""
    sequence_parallel: bool = False
    """Whether hidden states come cut along the sequence."""

    def shard(self, kernels: Kernels) -> Shard:
        """Return which part of the vocabulary the weight's logits are."""
        return Shard(self.vocab_size, self.group, kernels)


@dataclass(frozen=True)
class Tokens:
    """The supervised tokens' values, `[T]` float32 each, without gradient."""

    losses: torch.Tensor
    log_p: torch.Tensor
    statistics: dict[str, torch.Tensor]


TokenWeights = torch.Tensor | Callable[[Tokens], torch.Tensor] | None
"""Factors of the losses: `[T]` float32, or a function that makes them of the tokens' unweighted values."""


@dataclass(frozen=True)
class Supervision:
    """The supervised tokens of a micro-batch."""

    rows: torch.Tensor
    """`[T]` int64: their positions in the flattened `[s × b]`."""
    labels: torch.Tensor
    """`[T]` int64, ids in the whole vocabulary, none of them −100."""
    token_weights: TokenWeights = None
    """None: every loss counts once. A function is given the tokens first; the fused head computes its logits
    and collectives twice for it."""


@dataclass(frozen=True)
class HeadOptions:
    """Options that change the head's speed and memory, never its result."""

    path: LossPath = "auto"
    """materialized: all logits of the micro-batch's supervised tokens at once. fused: a chunk at a time.
    auto: fused, unless a trainable weight has no main_grad (Megatron's DDP gives it)."""
    chunk_tokens: int = 4096
    """Rows of logits that the fused head holds."""
    kernels: Kernels = "auto"
    """auto: Triton on CUDA, torch elsewhere."""
