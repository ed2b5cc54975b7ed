"""Models as state dicts of Megatron-Core's `torch_dist` format, loaded on any layout."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.runtime.errors import UserError

_NORM = ".pre_mlp_layernorm."
_EXTRA_STATE = "_extra_state"
"""The end of the name under which a module of Transformer Engine keeps what FP8 needs to go on."""

# Megatron-Core and torch raise these for files that hold something else.
_OF_DAMAGE = (KeyError, ValueError, TypeError, EOFError, OSError)


def load_checkpoint(folder: Path, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Fill a sharded state dict from `folder`; any layout may load what another saved. Collective.

    Modules' extra state that the checkpoint lacks is left out of the state dict: other layers wrote it, or an
    older version.

    Raises:
        UserError: Megatron-Core found the checkpoint incomplete, damaged or of other shapes.
    """
    _leave_out_absent_extra_state(folder, state_dict.get("model", {}))
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


def _leave_out_absent_extra_state(folder: Path, chunks: dict[str, Any]) -> None:
    wanted = [
        (chunk, name)
        for chunk in chunks.values()
        for name, entry in chunk.items()
        if isinstance(entry, ShardedObject) and entry.key.endswith(_EXTRA_STATE)
    ]
    if wanted:
        there = BlockReader(folder).objects
        for chunk, name in wanted:
            if chunk[name].unique_key not in there:
                del chunk[name]


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

    Local layers' hold all that Transformer Engine's layers would look for, so that Megatron-LM loads it.

    content: Megatron-Core's content metadata, which decides how tensors are named; None: this project's.
    """
    metadata = sharding_metadata(content)
    states = {}
    for number, chunk in enumerate(model):
        state = chunk.sharded_state_dict(metadata=metadata)
        for value in state.values():
            if isinstance(value, ShardedTensorFactory):
                value.merge_fn = partial(_joined, value.merge_fn)
        states[str(number)] = _norms_extra_state(state) | state
    return states


def _norms_extra_state(state: dict[str, Any]) -> dict[str, ShardedObject]:
    """Empty extra state for each norm that is a module of its own in Transformer Engine's layers too.

    Only norms need it: Megatron-Core's local linear layers write theirs. The norms that Transformer Engine
    fuses into a linear layer have its name in a checkpoint, `….layer_norm_weight`.
    """
    found = {}
    for name, entry in state.items():
        if isinstance(entry, ShardedTensor) and entry.key.endswith("layernorm.weight"):
            layers = entry.prepend_axis_num  # 1 where all layers' norms are one tensor
            found[name.removesuffix("weight") + _EXTRA_STATE] = ShardedObject(
                entry.key.removesuffix("weight") + _EXTRA_STATE,
                torch.empty(0, dtype=torch.uint8, device="cpu"),
                tuple(entry.global_shape[:layers]) or (1,),
                tuple(entry.global_offset[:layers]) or (0,),
                entry.replica_id,
            )
    return found


def _joined(join: Callable[[Any], torch.Tensor], parts: Any) -> torch.Tensor:
    """Return the parts of a gated weight as one: loading fills them where they lie, one after the other."""
    first, places = parts[0], [part.untyped_storage().data_ptr() for part in parts]
    ends = [part.storage_offset() + part.numel() for part in parts]
    if len({*places}) > 1 or [part.storage_offset() for part in parts[1:]] != ends[:-1]:
        return join(parts)
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def fill_model(model: Sequence[GPTModel], state: dict[str, Any]) -> None:
    """Copy a loaded `model_state` into the chunks; modules' extra state may be missing, or nobody's."""
    for number, chunk in enumerate(model):
        missing, unexpected = chunk.load_state_dict(state[str(number)], strict=False)
        wrong = [name for name in (*missing, *unexpected) if _EXTRA_STATE not in name]
        assert not wrong, f"missing or unexpected in the model's state: {wrong[:3]}"


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
