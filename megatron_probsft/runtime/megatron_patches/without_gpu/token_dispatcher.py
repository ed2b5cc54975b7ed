"""The all-to-all dispatcher gets NumPy arrays of CPU tensors too, as it wants them.

What: without a GPU a CPU tensor becomes the array that was asked for.
Why: Megatron-Core makes arrays of CUDA tensors only, and hands a CPU tensor on as it is.
Upstream: Megatron-Core, transformer/moe/moe_utils.py:1169 (`maybe_move_tensor_to_cpu`), imported by name
    in transformer/moe/token_dispatcher.py:39.
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_probsft.runtime.megatron_patches import replace


def apply() -> None:
    """Replace the dispatcher's function for this process."""
    from megatron.core.transformer.moe import token_dispatcher

    replace(token_dispatcher, "maybe_move_tensor_to_cpu", _as_asked)


def _as_asked(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
