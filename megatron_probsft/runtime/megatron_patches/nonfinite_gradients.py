"""An optimizer skips a step whose gradient is not finite.

What: `optimizer.step()` returns (False, None, None), nothing changed, where the gradient's norm is not
    finite. `step_if` also asks its caller, at the moment when the host has waited for the norm.
Why: Megatron-Core looks only where it scales losses, which is for fp16; elsewhere one bad batch would
    turn all weights into NaN. The norm is the same on every rank, so all of them skip alike.
Upstream: Megatron-Core, optimizer/optimizer.py:757 (`prepare_grads` of `MixedPrecisionOptimizer`) and
    1264 (of `FP32Optimizer`).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron.core.optimizer import MegatronOptimizer


def apply(optimizer: MegatronOptimizer) -> None:
    """Let this optimizer, the whole one where others are chained in it, skip such steps."""
    prepare, norm = optimizer.prepare_grads, optimizer.get_grad_norm
    found: list[float] = []

    def prepare_grads() -> bool:
        if prepare():
            return True
        found[:] = [float(norm())]  # Megatron-Core may leave it on the device, to be waited for once more
        return not math.isfinite(found[0])

    optimizer.prepare_grads = prepare_grads  # type: ignore[method-assign]
    # The step itself asks again: one pass over the gradients is enough.
    optimizer.get_grad_norm = lambda: found[0]  # type: ignore[method-assign]


def step_if(optimizer: MegatronOptimizer, wanted: Callable[[], bool]) -> tuple[bool, float]:
    """Do `optimizer.step()`, but skip it also where `wanted` is False.

    It is asked once the gradient's norm is known: what left the device before that is then on the host.

    Returns:
        Whether the weights were updated, and the gradient's norm if so, else NaN.
    """
    prepare = optimizer.prepare_grads

    def prepare_grads() -> bool:
        found = prepare()
        return not wanted() or found

    optimizer.prepare_grads = prepare_grads  # type: ignore[method-assign]
    try:
        updated, norm, _ = optimizer.step()  # type: ignore[misc]
    finally:
        optimizer.prepare_grads = prepare  # type: ignore[method-assign]
    return (True, float(norm)) if updated else (False, math.nan)
