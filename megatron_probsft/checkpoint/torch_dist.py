"""State dicts in Megatron-Core's `torch_dist` format, and loading them at any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.models.gpt import GPTModel

from megatron_probsft.runtime.errors import UserError


def load_checkpoint(folder: Path, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Fill a sharded state dict from `folder`; any layout may load what another saved. Collective.

    Raises:
        UserError: Megatron-Core found the checkpoint incomplete or of other shapes.
    """
    try:
        return dist_checkpointing.load(state_dict, str(folder))  # type: ignore[return-value]
    except (CheckpointingException, KeyError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {folder} cannot be loaded: {type(error).__name__}: {reason}") from error


def load_model(gpt: GPTModel, folder: Path) -> None:
    """Fill the model's weights only; raises as `load_checkpoint` does. Collective."""
    gpt.load_state_dict(load_checkpoint(folder, {"model": model_state(gpt)})["model"])


def model_state(gpt: GPTModel) -> dict[str, Any]:
    """The model's sharded state dict."""
    return gpt.sharded_state_dict(metadata=sharding_metadata())


def sharding_metadata() -> dict[str, Any]:
    """What Megatron-Core needs to lay out state dicts that load at any TP × PP × DP."""
    return CONTENT | {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
