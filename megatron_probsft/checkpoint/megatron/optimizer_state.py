"""The optimizer's state as a checkpoint: each rank writes and reads its own part only, without communication.

A distributed optimizer gives a rank a range of each flattened parameter. That range is a few rectangular
blocks of the whole tensor (`rectangles`), and `torch.distributed.checkpoint` takes any blocks: so the
checkpoint holds whole tensors under the names of Megatron-Core's `fully_reshardable` format,
`optimizer.state.exp_avg.…`. Megatron-Core itself (optimizer/distrib_optimizer.py,
`sharded_param_state_fully_reshardable`) gathers every bucket on every rank for it, but reads what is
written here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from megatron_probsft.checkpoint.megatron.rectangles import rectangles
from megatron_probsft.checkpoint.megatron.torch_dist import saved_name, sharding_metadata
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader, Target
from megatron_probsft.runtime.megatron_patches import torch_adam

# The main weights' names: of Megatron-Core's distributed optimizer, of its bf16 one; in float32 the weights.
_MAIN_WEIGHTS = ("optimizer.state.param.", "optimizer.state.fp32_param.", "")


def optimizer_content(optimizer: MegatronOptimizer, model: dict[str, Any]) -> dict[Any, Any]:
    """Return the optimizer's sharded state dict, for saving; no tensor in it is a copy.

    model: the sharded state dict of the model, whose tensors name the optimizer's.
    """
    inner = inner_optimizers(optimizer)
    if not any(isinstance(one, DistributedOptimizer) for one in inner):
        return _on_host(
            optimizer.sharded_state_dict(model, metadata=sharding_metadata())  # type: ignore[call-arg]
        )
    named = _named(model)
    contents = [_distributed_content(one, named) for one in inner]
    return contents[0] if len(contents) == 1 else dict(enumerate(contents))


def _on_host(content: Any) -> Any:
    """Return plain content whose tensors, such as the number of steps, a machine without GPUs can read."""
    if isinstance(content, dict):
        return {key: _on_host(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_on_host(value) for value in content]
    return content.cpu() if isinstance(content, torch.Tensor) else content


def read_optimizer(
    optimizer: MegatronOptimizer, model: dict[str, Any], reader: BlockReader, plain: dict[str, Any]
) -> None:
    """Fill this rank's part of the optimizer's state, whatever layout or optimizer wrote the checkpoint.

    Only its own numbers are read, a few MiB at a time, straight into the optimizer's tensors. The learning
    rates of the parameter groups are the schedule's business, and stay.

    Args:
        model: as for `optimizer_content`.
        plain: the checkpoint's content that is not sharded, under "optimizer".

    Raises:
        UserError: the checkpoint lacks a part, or cannot be read.
    """
    named, step = _named(model), _saved_step(plain)
    wanted: dict[str, list[Target]] = defaultdict(list)
    for inner in inner_optimizers(optimizer):
        inner.init_state_fn(inner.optimizer, inner.config)
        torch_adam.set_step(inner, step)
    for part in optimizer_parts(optimizer):
        pieces = _pieces(named[part.parameter])
        for name, values in part.tensors.items():
            for block, view in (cut for piece in pieces for cut in _cut(piece, part.start, values)):
                key = _saved_key(name, block.key, reader.tensors)
                wanted[key].append(Target(block.global_offset, view, block.allow_shape_mismatch))
    for key, targets in wanted.items():
        reader.fill(key, targets)


def _saved_key(name: str, key: str, there: Container[str]) -> str:
    """Return the name under which a checkpoint holds a state of the model's tensor `key`."""
    prefixes = _MAIN_WEIGHTS if name == "param" else (f"optimizer.state.{name}.",)
    keys = [saved_name(prefix + key, there) for prefix in prefixes]
    return next((one for one in keys if one in there), keys[0])


@dataclass(frozen=True)
class StatePart:
    """The state that this rank holds of a parameter."""

    parameter: torch.Tensor
    """The model's parameter, whole."""
    start: int
    """The place of the part's first number in the flattened parameter."""
    tensors: dict[str, torch.Tensor]
    """The moments, and the main weights as `param` where there are any: flat, all of one size."""


def inner_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    """Return Megatron-Core's optimizers of some parameters each: one, or experts' beside it."""
    chain = getattr(optimizer, "chained_optimizers", [optimizer])
    return [one for one in chain if not getattr(one, "is_stub_optimizer", False)]


def optimizer_parts(optimizer: MegatronOptimizer) -> Iterator[StatePart]:
    """Yield what this rank holds of the optimizer's state, parameter by parameter."""
    for inner in inner_optimizers(optimizer):
        yield from _parts(inner)


def _parts(inner: Any) -> Iterator[StatePart]:
    if isinstance(inner, DistributedOptimizer):
        buckets = (
            bucket for buffer in inner.gbuf_ranges for buckets in buffer.values() for bucket in buckets
        )
        for bucket in buckets:
            for parameter, ranges in bucket["param_map"].items():
                tensors = inner._get_main_param_and_optimizer_states(parameter)
                tensors = {key: value.detach() for key, value in tensors.items() if key != "step"}
                yield StatePart(parameter, ranges["param"].start, tensors)
        return
    if isinstance(inner, Float16OptimizerWithFloat16Params):
        groups = zip(inner.float16_groups, inner.fp32_from_float16_groups, strict=True)
        pairs = [pair for group in groups for pair in zip(*group, strict=True)]
    else:
        pairs = [(parameter, parameter) for parameter in inner.get_parameters()]
    for parameter, main in pairs:
        tensors = {key: value for key, value in inner.optimizer.state[main].items() if key != "step"}
        if main is not parameter:
            tensors["param"] = main
        yield StatePart(parameter, 0, {key: value.detach().view(-1) for key, value in tensors.items()})


def _named(model: dict[str, Any]) -> Mapping[torch.Tensor, ShardedTensor | ShardedTensorFactory]:
    """Return the model's sharded tensors by their parameters."""
    return {
        value.data: value
        for value in nested_values(model)
        if isinstance(value, ShardedTensor | ShardedTensorFactory) and value.data is not None
    }


def _distributed_content(inner: Any, named: Mapping[torch.Tensor, Any]) -> dict[str, Any]:
    inner.init_state_fn(inner.optimizer, inner.config)
    content = inner.state_dict()
    content["param_state"] = {
        number: {
            name: [block for piece in pieces for block in _blocks(piece, part, name, values)]
            for name, values in part.tensors.items()
        }
        for number, part in enumerate(_parts(inner))
        for pieces in [list(_pieces(named[part.parameter]))]
    }
    content["param_state_sharding_type"] = "fully_reshardable"
    return content


@dataclass(frozen=True)
class _Piece:
    """A part of a parameter that lies in the checkpoint as one block; a gated layer's weight has two."""

    start: int
    """The place of its first number in the flattened parameter."""
    sharded: ShardedTensor


def _pieces(sharded: ShardedTensor | ShardedTensorFactory) -> list[_Piece]:
    """Return how a parameter lies in the checkpoint's tensors."""
    assert sharded.data is not None
    if isinstance(sharded, ShardedTensor):
        return [_Piece(0, sharded)]
    built: Any = replace(sharded, data=sharded.data.detach().to("meta")).build()
    pieces = [_Piece(int(one.data.storage_offset()), one) for one in nested_values(built)]
    assert all(one.sharded.data.is_contiguous() for one in pieces), sharded.key  # type: ignore[union-attr]
    return pieces


def _cut(piece: _Piece, start: int, values: torch.Tensor) -> Iterator[tuple[ShardedTensor, torch.Tensor]]:
    """Yield the blocks of a piece in a range of the parameter that begins at `start`, with their values.

    The values are views of `values`, in the block's shape.
    """
    sharded = piece.sharded
    assert sharded.data is not None
    first = max(start - piece.start, 0)
    last = min(start - piece.start + values.numel(), sharded.data.numel())
    leading = sharded.prepend_axis_num
    for part in rectangles(tuple(sharded.local_shape), first, last):
        begin = part.start + piece.start - start
        shape = (1,) * leading + part.shape
        inside = (0,) * leading + part.offset
        block = replace(
            sharded,
            data=None,
            dtype=values.dtype,
            local_shape=shape,
            global_offset=tuple(a + b for a, b in zip(sharded.global_offset, inside, strict=True)),
            axis_fragmentations=None,
            prepend_axis_num=0,
        )
        yield block, values[begin : begin + part.end - part.start].view(shape)


def _blocks(piece: _Piece, part: StatePart, name: str, values: torch.Tensor) -> Iterator[ShardedTensor]:
    for block, view in _cut(piece, part.start, values):
        # Of the ranks that share the parameter, each writes its own range: only copies on tensor-parallel
        # and pipeline ranks (a norm, tied embeddings) are written once.
        assert isinstance(block.replica_id, tuple)
        yield replace(
            block,
            key=f"optimizer.state.{name}.{block.key}",
            data=view.detach(),
            replica_id=(*block.replica_id[:2], 0),
        )


def _saved_step(plain: Any) -> float:
    """Return the number of steps that the optimizer has done: Megatron-Core saves it in several places."""
    if isinstance(plain, dict):
        steps = [
            value for key, value in plain.items() if key in ("step", "common_step") and value is not None
        ]
        return max(map(float, [*steps, *(_saved_step(value) for value in plain.values())]), default=0.0)
    return max(map(_saved_step, plain), default=0.0) if isinstance(plain, list) else 0.0
