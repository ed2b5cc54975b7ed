"""Weight gradients are added to the float32 sums by the product that makes them, without Apex.

What: where Apex's extension is missing, torch's own GEMM with another dtype of output stands in for it.
Why: with gradient_accumulation_fusion ColumnParallelLinear refuses to be built, also as the output layer of a
    model of Transformer Engine's layers, which bring their own fusion; and without the fusion each weight
    gradient is rounded to bfloat16, written, read and added to the sum in a pass of its own.
Upstream: Megatron-Core, tensor_parallel/layers.py:50 (the import), 679 (the call), 1070 (the refusal).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from megatron.core.tensor_parallel import layers

from megatron_probsft.runtime.products import add_product


def apply() -> None:
    """Let this process's linear layers fuse; nothing is done where Apex's extension is installed."""
    if layers._grad_accum_fusion_available:
        return
    module: Any = layers
    module.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(wgrad_gemm_accum_fp32=_accumulate)
    module._grad_accum_fusion_available = True


def _accumulate(rows: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """Add grad_outputᵀ `[out, T]` · rows `[T, in]` to main_grad `[out, in]`, float32."""
    if len(rows):  # an expert may have none
        add_product(main_grad, grad_output.t(), rows)
