"""The two passes over a vocabulary shard's logits in plain torch: any device, any strides.

Rows are taken so many at a time that their one float32 copy stays in cache; each element is read from
memory once by the statistics, and read once and written once by the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from megatron_probsft.vocab_parallel.token_softmax import TokenSoftmax

_SCRATCH_BYTES = 2 * 2**20
"""The size of the float32 copy of a few rows: about a core's share of the cache, and all that a pass adds."""
_LOG2_E = 1 / math.log(2)
_LOWEST = torch.finfo(torch.float32).min


def shard_statistics(
    logits: torch.Tensor, local_labels: torch.Tensor, columns: int, needs: Sequence[str]
) -> torch.Tensor:
    """Return, per row, the maximum m, Σe with e = exp(z − m), and the label's logit; then what `needs` names.

    That is, in the order of `needs`: `entropy` Σe·(z − m); `collision` Σe²; `correct` the column of the first
    maximum.

    Args:
        logits: `[T, V_local]`, any float dtype, any strides.
        local_labels: `[T]` int64: the label's column, −1 where another shard has it, −100 for a row to skip.
        columns: the first `columns` ones are in the softmax; the rest are padding.

    Returns:
        `[T, 3 + len(needs)]` float32. A skipped row's entries are finite and mean nothing.
    """
    stats = logits.new_zeros(len(logits), 3 + len(needs), dtype=torch.float32)
    stats[:, 0] = _LOWEST
    if columns == 0:  # a shard of padding only
        return stats
    active, memory = logits[:, :columns], _scratch(logits, columns)
    for rows, count in _blocks(local_labels != -100, len(memory)):
        scratch = memory[:count]
        z = _float32(_rows(active, rows), scratch)
        # A row of −inf only: exp(−inf − lowest) = 0, where −inf − (−inf) would be NaN.
        highest = z.amax(1).clamp_(min=_LOWEST)
        block = stats.new_empty(count, stats.shape[1])
        block[:, 0] = highest
        label = z.gather(1, local_labels[rows].clamp(min=0)[:, None]).squeeze(1)
        block[:, 2] = torch.where(local_labels[rows] >= 0, label, 0.0)
        if "correct" in needs:
            block[:, 3 + needs.index("correct")] = z.argmax(1).float()
        z = torch.sub(z, highest[:, None], out=scratch)
        # −104: exp is 0 in float32, and 0 · (−inf) would be NaN.
        shifted = z.clamp(min=-104) if "entropy" in needs else None
        z.mul_(_LOG2_E).exp2_()  # exp itself is three times slower in torch's CPU build
        block[:, 1] = z.sum(1)
        if shifted is not None:
            block[:, 3 + needs.index("entropy")] = shifted.mul_(z).sum(1)
        if "collision" in needs:
            block[:, 3 + needs.index("collision")] = z.square_().sum(1)
        stats[rows] = block
    return stats


def write_gradient(logits: torch.Tensor, softmax: TokenSoftmax, columns: int, upstream: torch.Tensor) -> None:
    """Overwrite the logits with upstream · (onehot − softmax), computed in float32 and rounded once.

    Args:
        logits, columns: as in `shard_statistics`.
        softmax: of all shards; its statistics are not read.
        upstream: `[T]` float32, d loss / d log p. Where it is 0 the row is not read, only zeroed.
    """
    highest, local_labels = softmax.highest, softmax.local_labels
    alive = upstream != 0
    active, memory = logits[:, :columns], _scratch(logits, columns)
    offset = -softmax.log_total * _LOG2_E
    at_label = -upstream * torch.expm1(softmax.log_p)  # upstream · (1 − p), exact where p is near 1
    for rows, count in _blocks(alive, len(memory)):
        x = _rows(active, rows)
        scratch = memory[:count]
        # Small differences first: exact where a logit is near the maximum.
        z = torch.sub(_float32(x, scratch), highest[rows, None], out=scratch)
        torch.add(offset[rows, None], z, alpha=_LOG2_E, out=z).exp2_()
        gradient = torch.mul(z, -upstream[rows, None], out=x if x.dtype == torch.float32 else z)
        (owned,) = (local_labels[rows] >= 0).nonzero(as_tuple=True)
        gradient[owned, local_labels[rows][owned]] = at_label[rows][owned]
        if gradient is not x:
            x.copy_(gradient)
        if not isinstance(rows, slice):
            active.index_copy_(0, rows, x)
    logits[:, columns:] = 0
    logits.index_fill_(0, (~alive).nonzero().squeeze(1), 0.0)


def _rows(logits: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
    """Return a view for a slice, a copy for a list of rows."""
    return logits[rows] if isinstance(rows, slice) else logits.index_select(0, rows)


def _float32(x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Return x itself if it is float32, else its copy in scratch."""
    return x if x.dtype == torch.float32 else scratch.copy_(x)


def _scratch(logits: torch.Tensor, columns: int) -> torch.Tensor:
    rows = min(_SCRATCH_BYTES // (4 * max(1, columns)), len(logits))
    return logits.new_empty(max(1, rows), columns, dtype=torch.float32)


def _blocks(wanted: torch.Tensor, size: int) -> Iterator[tuple[slice | torch.Tensor, int]]:
    """Yield the wanted rows, `size` at a time: as slices (views, no copy) if all are wanted, else indices."""
    if wanted.all():
        for start in range(0, len(wanted), size):
            yield slice(start, min(start + size, len(wanted))), min(size, len(wanted) - start)
    else:
        for rows in wanted.nonzero().squeeze(1).split(size):
            yield rows, len(rows)
