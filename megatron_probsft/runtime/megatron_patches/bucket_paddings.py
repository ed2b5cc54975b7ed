"""DistributedOptimizer's `fully_reshardable` checkpoints keep the paddings between its buckets.

What: the gathered state gets the buffer's paddings back before parameters are cut from it.
Why: parameters are cut by their place in the buffer, paddings between buckets included, but the gathering
    leaves these out. So with several buckets whose sizes do not divide by 128 and by the data-parallel
    size (a width of 576; three replicas), what is saved of all but the first bucket is shifted, and a
    resumed run does not continue where it was.
Upstream: Megatron-Core, optimizer/distrib_optimizer.py:1262 (`get_parameter_state_dp_zero`), which the
    code around line 1785 reads (it warns that its zeros "can lead to data corruption", and names NVIDIA's
    issue 504).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def apply(optimizer: MegatronOptimizer) -> None:
    """Mend this optimizer; one that is not distributed needs nothing."""
    if isinstance(optimizer, DistributedOptimizer):
        optimizer.get_parameter_state_dp_zero = types.MethodType(  # type: ignore[method-assign]
            _state_with_paddings, optimizer
        )


def _state_with_paddings(self: DistributedOptimizer, *args: Any, **kwargs: Any) -> dict[Any, Any] | None:
    state: Any = DistributedOptimizer.get_parameter_state_dp_zero(self, *args, **kwargs)
    if state is None:
        return None
    for number, buffer in enumerate(self.buffers):
        for tensors in state[number].values():
            for key, joined in tensors.items():
                if isinstance(joined, torch.Tensor):
                    tensors[key] = _spread(joined, buffer.buckets, buffer.numel)
    return state


def _spread(joined: torch.Tensor, buckets: list[Any], numel: int) -> torch.Tensor:
    """Put the buckets' contents, which lie end to end, to their places in the buffer."""
    spread = joined.new_zeros(numel)
    sizes = [bucket.numel_unpadded for bucket in buckets]
    for bucket, part in zip(buckets, joined.split(sizes), strict=True):
        spread[bucket.offset : bucket.offset + len(part)] = part
    return spread
