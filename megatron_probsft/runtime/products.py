"""A product that is added to a sum of another dtype."""

from __future__ import annotations

import torch

_CPU_ROWS = 512


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left `[m, k]` · right `[k, n]`, of one dtype, to total `[m, n]`, which may be float32 instead."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # torch has no mixed-precision GEMM on CPU: a block of rows at a time, rounded once
        for start in range(0, len(total), _CPU_ROWS):
            rows = slice(start, start + _CPU_ROWS)
            total[rows].add_(left[rows] @ right)
