"""Transformer Engine's buffers for transfers between tensor-parallel ranks that run while layers compute."""

from __future__ import annotations

import importlib
from typing import Any

from megatron.core import parallel_state
from megatron.core.utils import is_te_min_version


def start_transfer_overlap(tokens: int, hidden_size: int, *, fp8: bool) -> None:
    """Make the buffers that layers with `tp_comm_overlap` look for; call it before they are built.

    As Megatron-LM's `_initialize_tp_communicators` (training/initialize.py). Nobody has run it on a GPU yet.
    Collective over the tensor-parallel group.

    Args:
        tokens: the length of every micro-batch on a context-parallel rank.
        fp8: whether the layers compute in FP8.
    """
    base: Any = importlib.import_module("transformer_engine.pytorch.module.base")
    precision: dict[str, Any] = {"use_fp8": fp8}
    if is_te_min_version("2.7.0"):
        modes = base.UserBufferQuantizationMode
        precision = {"quantization_modes": [modes.FP8 if fp8 else modes.NONE]}
    base.initialize_ub(
        shape=[tokens, hidden_size],
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        ub_cfgs={},
        bootstrap_backend="nccl",
        **precision,
    )
