"""The two passes over a vocabulary shard's logits in Triton, for CUDA.

The contract is that of `torch_kernels`. The statistics take one program per row, which reads its row once,
the gradient one program per row and block of columns; rows to skip are not read. With TRITON_INTERPRET=1 they
run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from megatron_probsft.vocab_parallel.token_softmax import TokenSoftmax

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # float32's
_LOG2_E = tl.constexpr(1.4426950408889634)
_IGNORED = tl.constexpr(-100)
# 16 elements a thread: 32 to 48 registers, so 5 to 8 programs a multiprocessor of Hopper; 8192 took 57 and,
# with all statistics, 94, which left 4 and 2.
MAX_BLOCK = 4096
WARPS = 8


def shard_statistics(
    logits: torch.Tensor, local_labels: torch.Tensor, columns: int, needs: Sequence[str]
) -> torch.Tensor:
    """Return what `torch_kernels.shard_statistics` does."""
    stats = logits.new_empty(len(logits), 3 + len(needs), dtype=torch.float32)
    if len(logits) == 0:
        return stats
    # Slot 0 (the maximum) stands for "not asked".
    slots = {
        name: 3 + needs.index(name) if name in needs else 0 for name in ("entropy", "collision", "correct")
    }
    _statistics_kernel[(len(logits),)](
        logits,
        logits.stride(0),
        logits.stride(1),
        local_labels,
        stats,
        columns,
        logits.shape[1],
        FIELDS=stats.shape[1],
        ENTROPY=slots["entropy"],
        COLLISION=slots["collision"],
        CORRECT=slots["correct"],
        BLOCK=_block(columns),
        num_warps=WARPS,  # type: ignore[call-arg]
    )
    return stats


def write_gradient(logits: torch.Tensor, softmax: TokenSoftmax, columns: int, upstream: torch.Tensor) -> None:
    """Do what `torch_kernels.write_gradient` does."""
    tokens, width = logits.shape
    if tokens == 0:
        return
    block = _block(width)
    blocks = triton.cdiv(width, block)
    _gradient_kernel[(tokens * blocks,)](
        logits,
        logits.stride(0),
        logits.stride(1),
        softmax.local_labels,
        softmax.highest,
        softmax.log_total,
        -upstream * torch.expm1(softmax.log_p),  # upstream · (1 − p) at the label, exact where p is near 1
        upstream.contiguous(),
        columns,
        width,
        blocks,
        BLOCK=block,
        num_warps=WARPS,  # type: ignore[call-arg]
    )


def _block(columns: int) -> int:
    return min(MAX_BLOCK, 1 << (max(columns, 128) - 1).bit_length())


@triton.jit
def _statistics_kernel(
    logits, row_stride, column_stride, labels, stats, columns, width,
    FIELDS: tl.constexpr, ENTROPY: tl.constexpr, COLLISION: tl.constexpr, CORRECT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    out = stats + row * FIELDS
    label = tl.load(labels + row)
    highest = _LOWEST
    total = 0.0
    moment = 0.0  # Σ e·(z − m)
    squares = 0.0  # Σ e²
    best = 0  # column of the first maximum
    label_logit = 0.0
    if label != _IGNORED:
        row_logits = logits + row * row_stride
        if label >= 0:
            label_logit = tl.load(row_logits + label * column_stride).to(tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            # Masked by the width, a multiple of 16 as a rule: the vocabulary's end would break wide loads.
            z = tl.load(row_logits + column.to(tl.int64) * column_stride, mask=column < width, other=0)
            z = tl.where(column < columns, z.to(tl.float32), float("-inf"))
            block_highest = tl.max(z, 0)
            if CORRECT:
                first = tl.min(tl.where(z == block_highest, column, 2147483647), 0)
                best = tl.where(block_highest > highest, first, best)
            new = tl.maximum(highest, block_highest)
            # Everything so far was relative to the old maximum.
            scale = tl.exp2((highest - new) * _LOG2_E)
            shifted = z - new
            e = tl.exp2(shifted * _LOG2_E)
            if ENTROPY:
                # −104: exp is 0 in float32, and 0 · (−inf) would be NaN.
                products = e * tl.where(shifted < -104, -104.0, shifted)
                moment = (moment + (highest - new) * total) * scale + tl.sum(products, 0)
            if COLLISION:
                squares = squares * scale * scale + tl.sum(e * e, 0)
            total = total * scale + tl.sum(e, 0)
            highest = new
    tl.store(out, highest)
    tl.store(out + 1, total)
    tl.store(out + 2, label_logit)
    if ENTROPY:
        tl.store(out + ENTROPY, moment)
    if COLLISION:
        tl.store(out + COLLISION, squares)
    if CORRECT:
        tl.store(out + CORRECT, tl.cast(best, tl.float32))


@triton.jit
def _gradient_kernel(
    logits, row_stride, column_stride, labels, highests, log_totals, label_gradients, upstreams,
    columns, width, blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # One-dimensional: a grid's second dimension ends at 65535, and there are more rows than that.
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * row_stride + column.to(tl.int64) * column_stride
    upstream = tl.load(upstreams + row)
    if upstream == 0:
        tl.store(place, tl.zeros([BLOCK], logits.dtype.element_ty), mask=column < width)
    else:
        z = tl.load(place, mask=column < width, other=0).to(tl.float32)
        # Small differences first: exact where a logit is near the maximum.
        exponent = (z - tl.load(highests + row)) - tl.load(log_totals + row)
        gradient = -upstream * tl.exp2(exponent * _LOG2_E)
        gradient = tl.where(column == tl.load(labels + row), tl.load(label_gradients + row), gradient)
        gradient = tl.where(column < columns, gradient, 0.0)
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=column < width)
