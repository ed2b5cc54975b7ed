"""What each tensor of a Megatron checkpoint is made of, in Hugging Face's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_probsft.checkpoint import layouts
from megatron_probsft.checkpoint.hf.weights import matched_parameters
from megatron_probsft.checkpoint.megatron import torch_dist
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.family import ModelShape, WeightRule
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.models.layout import Parallelism

_BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Piece:
    """A block of a tensor in a `torch_dist` checkpoint that holds whole Hugging Face tensors."""

    key: str
    """Megatron-Core's name of the tensor, without the layer where all layers share one."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    """Of the whole tensor; its vocabulary is not padded."""
    prepended: int
    """How many leading dimensions, of size 1 in `shape`, count layers (and experts)."""
    rule: WeightRule
    names: tuple[str, ...]
    """Hugging Face's names, in the order of the rule's sources."""
    first_row: int = 0
    """Of the vocabulary, where the block is a part of it."""

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        return self.key, self.offset

    def make(self, read: layouts.Read, shape: ModelShape) -> torch.Tensor:
        """The block, of `self.shape`, from Hugging Face tensors."""
        if self.rule.layout == "vocab":
            return read(self.names[0], slice(self.first_row, self.first_row + self.shape[0]))
        whole = layouts.cut(self.rule, self.names, read, shape, 0, 1, shape.vocab_size)
        return whole.reshape(self.shape)

    def split(self, block: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        """Inverse of `make`: the Hugging Face tensors, or their rows from `first_row`, as `names`."""
        return layouts.join(self.rule, [block.reshape(self.shape[self.prepended :])], shape)

    def in_rows(self, starts: Sequence[int]) -> list[Piece]:
        """The same in blocks of rows that begin at `starts`: the vocabulary, its rows in no need of order."""
        assert self.rule.layout == "vocab"
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


def pieces_of(
    hf: HFModel, content: dict[str, Any], dtype_of: Callable[[str], torch.dtype]
) -> tuple[list[Piece], dict[str, Any]]:
    """All blocks of a model's checkpoint, and its sharded state dict, of tensors on the meta device.

    Megatron-Core's own model names the tensors. Needs `distributed.initialize()` with one process.

    Args:
        content: Megatron-Core's content metadata, which decides how tensors are named.
        dtype_of: of a Hugging Face tensor; a Megatron tensor gets the widest of its sources'.
    """
    config = transformer_config(hf.shape, Parallelism(), torch.float32)
    model = build_model(hf.shape, config, on_meta=True)
    matched = list(matched_parameters(model, hf))
    for _, parameter, _, names in matched:
        dtype = dtype_of(names[0])
        for name in names[1:]:
            dtype = torch.promote_types(dtype, dtype_of(name))
        parameter.data = parameter.data.to(dtype)
    state = torch_dist.model_state(model, content)
    pieces = []
    for local_name, _, rule, names in matched:
        for part, sources in _parts(state["0"][local_name], names):
            whole = len(sources) == len(names)
            pieces.append(
                Piece(
                    part.key,
                    tuple(part.global_offset),
                    (1,) * part.prepend_axis_num + tuple(part.local_shape),
                    tuple(part.global_shape),
                    part.prepend_axis_num,
                    rule if whole else dataclasses.replace(rule, layout="replicated"),
                    tuple(sources),
                )
            )
    return pieces, state["0"]


def cut_vocabulary(pieces: list[Piece], state: dict[str, Any]) -> list[Piece]:
    """Cut a large vocabulary, in both, into equal blocks that are written one by one.

    So none of them has to be in memory whole, here and when a tensor-parallel rank reads its part.
    """
    result = []
    names = {sharded.key: name for name, sharded in state.items() if isinstance(sharded, ShardedTensor)}
    for piece in pieces:
        blocks = [piece]
        if piece.rule.layout == "vocab":
            name = names[piece.key]
            sharded: ShardedTensor = state[name]
            assert sharded.data is not None
            count = _even_blocks(piece.shape[0], sharded.data.nbytes)
            blocks = piece.in_rows(range(0, piece.shape[0], piece.shape[0] // count))
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
        result += blocks
    return result


def _even_blocks(rows: int, nbytes: int) -> int:
    """How many equal blocks of at most `_BLOCK_BYTES`; one, where the rows do not divide into few."""
    least = -(-nbytes // _BLOCK_BYTES)
    return next((count for count in range(least, 8 * least) if rows % count == 0), 1)


def _parts(
    sharded: ShardedTensor | ShardedTensorFactory, names: list[str]
) -> list[tuple[ShardedTensor, list[str]]]:
    """Megatron-Core saves gate and up apart, so that they can be cut anew: one source each."""
    if isinstance(sharded, ShardedTensor):
        return [(sharded, names)]
    built: Any = sharded.build()
    return [(part, [name]) for part, name in zip(built, names, strict=True)]
