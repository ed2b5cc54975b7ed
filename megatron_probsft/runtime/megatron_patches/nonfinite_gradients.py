"""An optimizer skips a step whose gradient is not finite.

What: `optimizer.step()` returns (False, None, None), nothing changed, where the gradient's norm is not
    finite.
Why: Megatron-Core looks only where it scales losses, which is for fp16; elsewhere one bad batch would
    turn all weights into NaN. The norm is the same on every rank, so all of them skip alike.
Upstream: Megatron-Core, optimizer/optimizer.py:757 (`prepare_grads` of `MixedPrecisionOptimizer`) and
    1264 (of `FP32Optimizer`).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import math

from megatron.core.optimizer import MegatronOptimizer


def apply(optimizer: MegatronOptimizer) -> None:
    """Let this optimizer, the whole one where others are chained in it, skip such steps."""
    prepare, norm = optimizer.prepare_grads, optimizer.get_grad_norm
    found: list[float] = []

    def prepare_grads() -> bool:
        if prepare():
            return True
        found[:] = [norm()]
        return not math.isfinite(found[0])

    optimizer.prepare_grads = prepare_grads  # type: ignore[method-assign]
    # The step itself asks again: one pass over the gradients is enough.
    optimizer.get_grad_norm = lambda: found[0]  # type: ignore[method-assign]
