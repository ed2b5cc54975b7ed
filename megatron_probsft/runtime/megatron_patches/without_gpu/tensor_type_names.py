"""Megatron-Core compares `Tensor.type()` with "torch.cuda.FloatTensor"; CPU tensors pass too.

What: without a GPU, during the functions that compare, `Tensor.type()` names CPU types as if they were
    CUDA's.
Why: the optimizers take "torch.FloatTensor" for a type that they cannot train, and clipping asserts.
Upstream: Megatron-Core, optimizer/optimizer.py:1009 (`Float16OptimizerWithFloat16Params.__init__`),
    optimizer/distrib_optimizer.py:401 (below `DistributedOptimizer.__init__`),
    optimizer/clip_grads.py:174 (`clip_grad_by_total_norm_fp32`, which optimizer.py imports by name).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from megatron_probsft.runtime.megatron_patches import replace

_COMPARING = (
    ("megatron.core.optimizer.optimizer", "Float16OptimizerWithFloat16Params", "__init__"),
    ("megatron.core.optimizer.distrib_optimizer", "DistributedOptimizer", "__init__"),
    ("megatron.core.optimizer.optimizer", None, "clip_grad_by_total_norm_fp32"),
)


def apply() -> None:
    """Wrap the functions for this process."""
    for module_name, class_name, function_name in _COMPARING:
        module = importlib.import_module(module_name)
        owner = getattr(module, class_name) if class_name else module
        replace(owner, function_name, _with_cuda_type_names(getattr(owner, function_name)))


def _with_cuda_type_names(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        original = torch.Tensor.type

        def type_name(self: torch.Tensor, *type_args: Any, **type_kwargs: Any) -> Any:
            result = original(self, *type_args, **type_kwargs)
            return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

        torch.Tensor.type = type_name  # type: ignore[method-assign]
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.type = original  # type: ignore[method-assign]

    return call
