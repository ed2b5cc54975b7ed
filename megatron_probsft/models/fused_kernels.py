"""Kernels on CUDA for layers without Transformer Engine: which library's, and why.

Bytes of memory traffic per element in bfloat16, forward + backward (counted, not measured):
- SwiGLU, per element of the intermediate size f: unfused 36; Megatron-Core's own fusion (torch.compile) and
  liger-kernel's Triton kernel 16. Liger reports its kernel 1.6 times as fast as Megatron-Core's on an H100
  (liger_kernel/megatron/swiglu.py, version 0.8.5), so it is taken where it is installed.
- rotary, per element of query and key: unfused 44, liger-kernel's kernel 8, and 4 for a copy, as it
  overwrites what it is given.
- RMSNorm, per element: torch's own kernels 14, liger-kernel's 12: under 0.2 % of a step, so torch's stay,
  which compute the same everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.device import has_gpu

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@functools.cache
def fuse_swiglu() -> None:
    """Let Megatron-Core's fused SwiGLU (`bias_activation_fusion`) be liger-kernel's on a GPU that has it.

    The replacement is liger-kernel's own (`apply_liger_kernel_to_megatron`). Experts weighted by a router
    keep Megatron-Core's fusion. Where liger-kernel is missing, a line says so.
    """
    if not has_gpu():
        return
    if not _has_liger():
        distributed.say(
            "liger-kernel 0.8.5 or newer is not installed: rotary embeddings run unfused, SwiGLU as "
            "torch.compile fuses it (pip install liger-kernel)"
        )
        return
    from liger_kernel.megatron import (  # pyright: ignore[reportMissingImports]
        apply_liger_kernel_to_megatron,
    )

    apply_liger_kernel_to_megatron(rms_norm=False, swiglu=True)


@functools.cache
def liger_rotate() -> Rotate | None:
    """Return liger-kernel's rotation, of the arguments of `rotary.rotate`, on a GPU that has it."""
    if not (has_gpu() and _has_liger()):
        return None
    from liger_kernel.ops import LigerRopeFunction  # pyright: ignore[reportMissingImports]

    def rotated(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # [t, heads, d] to [1, heads, t, d], which it undoes itself. Backward overwrites the gradients
        # that it gets, which attention made for it alone.
        heads_first = (_own(states).unsqueeze(0).transpose(1, 2) for states in (query, key))
        outputs = LigerRopeFunction.apply(*heads_first, cos, sin)
        query, key = (output.transpose(1, 2).squeeze(0) for output in outputs)
        return query, key

    return rotated


def _own(states: torch.Tensor) -> torch.Tensor:
    """Copy what the kernel would overwrite: recomputed layers and others read it again.

    Other strides it copies itself.
    """
    return states.clone() if states.is_contiguous() else states


def _has_liger() -> bool:
    if importlib.util.find_spec("liger_kernel") is None:
        return False
    import liger_kernel.ops  # pyright: ignore[reportMissingImports]

    return hasattr(liger_kernel.ops, "LigerFusedGateUpSiLUMulFunction")
