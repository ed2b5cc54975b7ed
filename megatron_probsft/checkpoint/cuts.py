"""Cut Hugging Face tensors into a rank's shard, and join shards back: pure functions, exact both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_probsft.models.build import padded_vocab_size
from megatron_probsft.models.family import ModelShape, WeightRule

Read = Callable[..., torch.Tensor]
"""read(hf name) gives the tensor; read(hf name, rows) and read(hf name, rows, columns) these slices of it."""


def cut(
    rule: WeightRule,
    names: Sequence[str],
    read: Read,
    shape: ModelShape,
    rank: int,
    tp: int,
) -> torch.Tensor:
    """This tensor-parallel rank's shard of a Megatron parameter; nothing else is read.

    A vocabulary is padded to a multiple of tp; see `cut_vocab` for another padding.

    Args:
        names: `rule.hf` with the numbers of layer and expert filled in.
        rank, tp: position in, and size of, the tensor-parallel group.
    """
    if rule.cut == "replicated":
        return read(names[0])
    if rule.cut == "row":
        return read(names[0], slice(None), _share(rule.shapes[0][1], rank, tp)) if tp > 1 else read(names[0])
    if rule.cut == "vocab":
        return cut_vocab(names[0], read, shape.vocab_size, rank, padded_vocab_size(shape, tp) // tp)
    if rule.cut == "gated":
        rows = _share(rule.shapes[0][0], rank, tp)
        return torch.cat([read(name, rows) for name in names])
    groups = shape.num_query_groups // tp
    per_group = [shape.num_attention_heads // shape.num_query_groups, 1, 1]
    parts = []
    for name, heads in zip(names, per_group, strict=True):
        rows = _share(heads * shape.num_query_groups * shape.head_dim, rank, tp)
        parts.append(read(name, rows).unflatten(0, (groups, heads * shape.head_dim)))
    return torch.cat(parts, dim=1).flatten(0, 1)


def join(rule: WeightRule, shards: Sequence[torch.Tensor], shape: ModelShape) -> list[torch.Tensor]:
    """The Hugging Face tensors, in the order of `rule.hf`, from all ranks' shards: the inverse of `cut`."""
    if rule.cut == "replicated":
        return [shards[0]]
    if rule.cut == "row":
        return [_cat(shards, dim=1)]
    if rule.cut == "vocab":
        return [_cat(shards)[: shape.vocab_size]]
    if rule.cut == "gated":
        halves = [shard.chunk(2) for shard in shards]
        return [_cat([half[i] for half in halves]) for i in (0, 1)]
    head = shape.head_dim
    query = shape.num_attention_heads // shape.num_query_groups * head
    grouped = _cat(shards).unflatten(0, (shape.num_query_groups, query + 2 * head))
    return [part.flatten(0, 1).contiguous() for part in grouped.split([query, head, head], dim=1)]


def cut_vocab(name: str, read: Read, vocab_size: int, rank: int, rows: int) -> torch.Tensor:
    """The `rows` rows of the vocabulary that this tensor-parallel rank has; those beyond it are zeros."""
    first, last = min(rank * rows, vocab_size), min((rank + 1) * rows, vocab_size)
    real = read(name, slice(first, last))
    if len(real) == rows:
        return real
    return torch.cat([real, real.new_zeros(rows - len(real), *real.shape[1:])])


def _cat(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """The parts in one tensor; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _share(size: int, rank: int, tp: int) -> slice:
    return slice(rank * size // tp, (rank + 1) * size // tp)
