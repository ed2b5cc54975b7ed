"""The softmax of some rows, as far as their labels need it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSoftmax:
    """The softmax at the labels, `[T]` float32 each, the same on every rank of the group."""

    log_p: torch.Tensor
    """0 for ignored rows."""
    statistics: dict[str, torch.Tensor]
    """Those asked for, of `entropy` (nats), `collision` (Σp²) and `correct` (bool: the label is the argmax,
    the first one among equals, as `torch.argmax` has it). They mean nothing in ignored rows."""
    highest: torch.Tensor
    log_total: torch.Tensor
    """log Σ exp z = highest + log_total, over all shards."""
    local_labels: torch.Tensor
    """`[T]` int64: the label's column on this shard, −1 where another shard has it, −100 for ignored rows."""
