"""Models as state dicts of Megatron-Core's `torch_dist` format, loaded on any layout."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.runtime.errors import UserError

_NORM = ".pre_mlp_layernorm."

# Megatron-Core and torch raise these for files that hold something else.
_OF_DAMAGE = (KeyError, ValueError, TypeError, EOFError, OSError)


def load_checkpoint(folder: Path, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Fill a sharded state dict from `folder`; any layout may load what another saved. Collective.

    Raises:
        UserError: Megatron-Core found the checkpoint incomplete, damaged or of other shapes.
    """
    try:
        # Without the check of access, for which every rank gets a list of all ranks' tensors.
        return dist_checkpointing.load(  # type: ignore[return-value]
            state_dict, str(folder), validate_access_integrity=False
        )
    except (CheckpointException, CheckpointingException, *_OF_DAMAGE) as caught:
        error = caught
        if isinstance(caught, CheckpointException):  # torch's, of several ranks
            error, _ = next(iter(caught.failures.values()))
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {folder} cannot be loaded: {type(error).__name__}: {reason}") from caught


def load_model(model: Sequence[GPTModel], folder: Path) -> None:
    """Fill the weights of this rank's chunks only; raises as `load_checkpoint` does. Collective."""
    state = model_state(model)
    if any(_NORM in sharded.key for chunk in state.values() for sharded in _tensors(chunk)):
        there = BlockReader(folder).tensors
        for chunk in state.values():
            for sharded in _tensors(chunk):
                sharded.key = saved_name(sharded.key, there)
    fill_model(model, load_checkpoint(folder, {"model": state})["model"])


def saved_name(key: str, there: Container[str]) -> str:
    """The name under which a checkpoint holds a tensor; the norm before a mixture may have either of two.

    Megatron-Core's Transformer Engine layers, and ours, save it by its own name; its local layers as if it
    were fused into the linear layer after it.
    """
    other = key.replace(_NORM, ".mlp.linear_fc1.layer_norm_")
    return other if key not in there and other in there else key


def _tensors(chunk: dict[str, Any]) -> list[ShardedTensor]:
    return [entry for entry in chunk.values() if isinstance(entry, ShardedTensor)]


def model_state(model: Sequence[GPTModel], content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The sharded state dicts of this rank's chunks, by number. Tensors are named by their global layer.

    content: Megatron-Core's content metadata, which decides how tensors are named; None: this project's.
    """
    metadata = sharding_metadata(content)
    state = {str(number): chunk.sharded_state_dict(metadata=metadata) for number, chunk in enumerate(model)}
    for value in (value for chunk in state.values() for value in chunk.values()):
        if isinstance(value, ShardedTensorFactory):
            value.merge_fn = partial(_joined, value.merge_fn)
    return state


def _joined(join: Callable[[Any], torch.Tensor], parts: Any) -> torch.Tensor:
    """Return the parts of a gated weight as one: loading fills them where they lie, one after the other."""
    first, places = parts[0], [part.untyped_storage().data_ptr() for part in parts]
    ends = [part.storage_offset() + part.numel() for part in parts]
    if len({*places}) > 1 or [part.storage_offset() for part in parts[1:]] != ends[:-1]:
        return join(parts)
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def fill_model(model: Sequence[GPTModel], state: dict[str, Any]) -> None:
    """Copy a loaded `model_state` into the chunks."""
    for number, chunk in enumerate(model):
        chunk.load_state_dict(state[str(number)])


def sharding_metadata(content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The metadata with which Megatron-Core makes state dicts that load on any layout."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return (CONTENT if content is None else content) | {"dp_cp_group": group}


CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
