"""Tensors that Megatron-Core makes with the literal `device="cuda"` are made on the CPU.

What: without a GPU, the few modules that do so see, as their `torch`, a module whose factories take
    "cuda" for the CPU.
Why: the call raises "Torch not compiled with CUDA enabled", or "Found no NVIDIA driver".
Upstream: Megatron-Core, for instance pipeline_parallel/schedules.py:749, optimizer/clip_grads.py:96,
    optimizer/optimizer.py:315, transformer/utils.py:39, utils.py:1332,
    dist_checkpointing/exchange_utils.py:103, dist_checkpointing/strategies/state_dict_saver.py:204.
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

import torch

_FACTORIES = ("zeros", "ones", "empty", "tensor", "full")
MODULES = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.optimizer",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
)


def apply() -> None:
    """Give each of the modules that `torch`, for this process."""
    proxy = _torch_with_cpu_factories()
    for name in MODULES:
        module: Any = importlib.import_module(name)
        assert module.torch is torch, f"{name} no longer imports torch: see {__name__}"
        module.torch = proxy


def _torch_with_cpu_factories() -> types.ModuleType:
    class TorchOnCpu(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def on_cpu(factory: Callable) -> Callable:
        @functools.wraps(factory)
        def create(*args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("device") == "cuda":
                kwargs["device"] = torch.device("cpu")
            return factory(*args, **kwargs)

        return create

    proxy = TorchOnCpu("torch")
    for name in _FACTORIES:
        setattr(proxy, name, on_cpu(getattr(torch, name)))
    return proxy
