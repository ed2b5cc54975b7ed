"""Statistics for pictures and trial calls: of a softmax in which the other tokens share 1 − p evenly."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 32768


def spread_statistics(log_p: torch.Tensor, others: int = VOCABULARY - 1) -> dict[str, Any]:
    """Return every argument that a loss may ask for, where `others` further tokens share 1 − p."""
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
