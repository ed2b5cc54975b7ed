"""DistributedOptimizer saves with torch's AdamW, which it uses where TE and Apex are missing.

What: the optimizer starts with a state of zeros, whose `step` lies beside its parameter. Also, AdamW is
    torch's fused one: one pass over parameters and moments instead of ten.
Why: an optimizer that has not stepped has no state, and saving it asserts. Fused AdamW reads `step` on the
    parameter's device without looking where it is (pytorch#127197).
Upstream: Megatron-Core, optimizer/distrib_optimizer.py:839 (`state_dict`).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer


def apply(optimizer: MegatronOptimizer) -> None:
    """Mend this optimizer; nothing is done where TE or Apex is installed."""
    if HAVE_APEX_OR_TE:
        return
    for group in optimizer.param_groups:
        group["fused"] = True
    if isinstance(optimizer, DistributedOptimizer):
        _start_with_zero_state(optimizer.optimizer)


def set_step(optimizer: Any, step: float) -> None:
    """Set the number of steps that an optimizer has done, where it looks for it: TE and Apex, or torch."""
    adam = optimizer.optimizer
    for group in adam.param_groups:
        if HAVE_APEX_OR_TE:
            group["step"] = int(step)
            continue
        for parameter in group["params"]:
            adam.state[parameter]["step"] = _step_of(parameter).fill_(step)


def _start_with_zero_state(adam: torch.optim.Optimizer) -> None:
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": _step_of(parameter),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _step_of(parameter: torch.Tensor) -> torch.Tensor:
    """Return zero steps, of a parameter of its own and on its device."""
    return torch.zeros((), dtype=torch.float32, device=parameter.device)
