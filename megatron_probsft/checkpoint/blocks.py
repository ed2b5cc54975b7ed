"""The blocks that a Megatron checkpoint's tensors consist of, each with the Hugging Face tensors in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_probsft.checkpoint.cuts import Read, cut, join
from megatron_probsft.checkpoint.hf.weights import matched_parameters
from megatron_probsft.checkpoint.megatron import torch_dist
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.family import ModelShape, WeightRule
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.models.layout import Parallelism

_BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Block:
    """A part of a tensor in a `torch_dist` checkpoint that holds whole Hugging Face tensors, or rows."""

    key: str
    """Megatron-Core's name of the tensor, without the layer where all layers share one."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    """The whole tensor's shape; its vocabulary is not padded."""
    prepended: int
    """Number of leading dimensions, of size 1 in `shape`, that count layers (and experts)."""
    rule: WeightRule
    names: tuple[str, ...]
    """Hugging Face's names, in the order of the rule's sources."""
    first_row: int = 0
    """The first row of the vocabulary in the block."""

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        return self.key, self.offset

    def make(self, read: Read, shape: ModelShape) -> torch.Tensor:
        """The block, of `self.shape`, from Hugging Face tensors."""
        if self.rule.cut == "vocab":
            return read(self.names[0], slice(self.first_row, self.first_row + self.shape[0]))
        whole = cut(self.rule, self.names, read, shape, rank=0, tp=1)
        return whole.reshape(self.shape)

    def split(self, values: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        """The Hugging Face tensors (or their rows from `first_row`) by `names`: the inverse of `make`."""
        return join(self.rule, [values.reshape(self.shape[self.prepended :])], shape)

    def in_rows(self, starts: Sequence[int]) -> list[Block]:
        """The vocabulary in blocks that begin at these rows: they need no rearranging."""
        assert self.rule.cut == "vocab"
        ends = [*starts[1:], self.shape[0]]
        return [
            dataclasses.replace(
                self,
                offset=(start, *self.offset[1:]),
                shape=(end - start, *self.shape[1:]),
                first_row=start,
            )
            for start, end in zip(starts, ends, strict=True)
        ]


def blocks_of(
    hf: HFModel, content: dict[str, Any], dtype_of: Callable[[str], torch.dtype]
) -> tuple[list[Block], dict[str, Any]]:
    """All blocks of a model's checkpoint, and its sharded state dict; tensors are on the meta device.

    Megatron-Core's own model names the tensors. Needs `distributed.initialize()` with one process.

    Args:
        content: Megatron-Core's content metadata, which decides how tensors are named.
        dtype_of: gives a Hugging Face tensor's dtype; a Megatron tensor gets the widest of its sources'.
    """
    config = transformer_config(hf.shape, Parallelism(), torch.float32)
    model = build_model(hf, config, on_meta=True)
    matched = list(matched_parameters(model, hf))
    for _, parameter, _, names in matched:
        dtype = dtype_of(names[0])
        for name in names[1:]:
            dtype = torch.promote_types(dtype, dtype_of(name))
        parameter.data = parameter.data.to(dtype)
    state = torch_dist.model_state(model, content)
    blocks = []
    for local_name, _, rule, names in matched:
        for part, sources in _saved_tensors(state["0"][local_name], names):
            whole = len(sources) == len(names)
            blocks.append(
                Block(
                    part.key,
                    tuple(part.global_offset),
                    (1,) * part.prepend_axis_num + tuple(part.local_shape),
                    tuple(part.global_shape),
                    part.prepend_axis_num,
                    rule if whole else dataclasses.replace(rule, cut="replicated"),
                    tuple(sources),
                )
            )
    return blocks, state["0"]


def split_vocabulary(blocks: list[Block], state: dict[str, Any]) -> list[Block]:
    """The blocks with a large vocabulary split into equal ones that are written one by one; `state` as well.

    So none of them has to be in memory whole, here and when a tensor-parallel rank reads its part.
    """
    result = []
    names = {sharded.key: name for name, sharded in state.items() if isinstance(sharded, ShardedTensor)}
    for block in blocks:
        if block.rule.cut != "vocab":
            result.append(block)
            continue
        name = names[block.key]
        sharded: ShardedTensor = state[name]
        assert sharded.data is not None
        count = _even_blocks(block.shape[0], sharded.data.nbytes)
        result += block.in_rows(range(0, block.shape[0], block.shape[0] // count))
        state[name] = [
            ShardedTensor.from_rank_offsets(
                sharded.key,
                part,
                (0, index, count),
                replica_id=sharded.replica_id,
                allow_shape_mismatch=sharded.allow_shape_mismatch,
            )
            for index, part in enumerate(sharded.data.chunk(count))
        ]
    return result


def _even_blocks(rows: int, nbytes: int) -> int:
    """The number of equal blocks of at most `_BLOCK_BYTES`; 1 where the rows do not divide into few."""
    least = -(-nbytes // _BLOCK_BYTES)
    return next((count for count in range(least, 8 * least) if rows % count == 0), 1)


def _saved_tensors(
    sharded: ShardedTensor | ShardedTensorFactory, names: list[str]
) -> list[tuple[ShardedTensor, list[str]]]:
    """(tensor, Hugging Face names in it): Megatron-Core saves gate and up apart, to cut them anew."""
    if isinstance(sharded, ShardedTensor):
        return [(sharded, names)]
    built: Any = sharded.build()
    return [(part, [name]) for part, name in zip(built, names, strict=True)]
