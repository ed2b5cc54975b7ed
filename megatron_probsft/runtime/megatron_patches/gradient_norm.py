"""Without Transformer Engine and Apex the gradient's norm and clipping take a few kernels, and one wait.

What: the norms of all gradients are taken and joined on their device, and all are scaled together.
Why: Megatron-Core's own stand-ins read each parameter's norm on the host, which waits for the device as often
    as there are parameters, and scale with two kernels for each.
Upstream: Megatron-Core, utils.py:1325 (`local_multi_tensor_l2_norm`) and 1337 (`local_multi_tensor_scale`),
    imported by name in optimizer/clip_grads.py:41.
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import utils
from megatron.core.optimizer import clip_grads

from megatron_probsft.runtime.megatron_patches import replace


def apply() -> None:
    """Replace both for this process; nothing is done where Transformer Engine's or Apex's are used."""
    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        replace(clip_grads, "l2_norm_impl", _norm)
        replace(clip_grads, "multi_tensor_scale_impl", _scale)


def _norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], *_: Any
) -> tuple[torch.Tensor, None]:
    gradients = [tensor for tensors in tensor_lists for tensor in tensors]
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).norm().reshape(1), None


def _scale(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], scale: float
) -> None:
    sources, targets = tensor_lists
    if targets is not sources:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(targets, scale)  # pyright: ignore[reportPrivateImportUsage]
