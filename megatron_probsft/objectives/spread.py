"""Statistics of a softmax in which the other tokens share 1 − p evenly: for pictures and trial calls."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 32768


def spread_statistics(log_p: torch.Tensor, others: int = VOCABULARY - 1) -> dict[str, Any]:
    """Every argument that a loss may ask for, for log_p `[T]` with 1 − p on `others` further tokens."""
    x = log_p.detach().double()
    p, rest = x.exp(), -torch.expm1(x)
    each = rest / others
    entropy = -p * x - torch.xlogy(rest, each)
    return {
        "entropy": entropy.float(),
        "collision": (p.square() + rest * each).float(),
        "correct": p >= each,
        "vocab_size": VOCABULARY,
    }
