"""Megatron-Core may call functions of `torch.cuda`, and `Tensor.cuda`, on a machine without a GPU.

What: without a GPU they act on the CPU, where work is in order already and there is nothing to wait for.
Why: each raises "Torch not compiled with CUDA enabled", or "Found no NVIDIA driver".
Upstream: Megatron-Core, for instance tensor_parallel/mappings.py:145 (`_gather_along_first_dim`),
    distributed/param_and_grad_buffer.py:632 and 686 (streams), pipeline_parallel/p2p_communication.py:263
    (`synchronize`), tensor_parallel/random.py:303 and 490, optimizer/distrib_optimizer.py:1374
    (`Tensor.cuda`).
Versions: Megatron-Core 0.19.2, torch from 2.11 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from megatron_probsft.runtime.megatron_patches import replace


class _Stream:
    """This stands for a CUDA stream."""

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self) -> _Stream:
        return self  # an event too is only waited for


REPLACEMENTS: dict[str, Callable] = {
    "current_device": lambda: torch.device("cpu"),
    "synchronize": lambda device=None: None,
    "current_stream": lambda device=None: _Stream(),
    "Stream": _Stream,
    "stream": contextlib.nullcontext,
    "manual_seed": torch.manual_seed,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
}


def apply() -> None:
    """Replace them for this process."""
    for name, function in REPLACEMENTS.items():
        replace(torch.cuda, name, function)
    replace(torch.Tensor, "cuda", lambda self, *args, **kwargs: self)
