"""An optimizer's checkpoint goes on with another library's Adam: Transformer Engine's, Apex's or torch's.

What: before an optimizer loads, its step is put where this Adam has it, as this Adam counts it, and settings
    that only this Adam has are added to its groups.
Why: torch counts steps in floats for each parameter, which Megatron-Core saves as `common_step`, or for the
    distributed optimizer in the groups; the others count integers in their groups. With torch's
    checkpoint Transformer Engine's Adam fails on a state named `step`, on a step of 3.0 and on groups without
    `bias_correction`; with Transformer Engine's, torch's fails on states without a step.
Upstream: Megatron-Core, optimizer/optimizer.py:1188 and 1345 (`common_step`), optimizer/distrib_optimizer.py
    from 836 on; Transformer Engine, pytorch/optimizers/fused_adam.py (`load_state_dict`, `step`).
Versions: Megatron-Core 0.19.2, Transformer Engine 2.5 to 2.18, torch from 2.11 on.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer


def apply(optimizer: MegatronOptimizer) -> None:
    """Let this optimizer, one that is not a chain of others, load what any of them saved."""
    load = optimizer.load_state_dict

    def load_state_dict(state_dict: dict[str, Any]) -> None:
        _adapt(state_dict.get("optimizer", state_dict), optimizer)
        load(state_dict)

    optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _adapt(saved: dict[str, Any], optimizer: MegatronOptimizer) -> None:
    adam: Any = optimizer.optimizer
    groups, states = saved["param_groups"], saved.get("state", {})
    steps = [group.pop("step") for group in groups if "step" in group]
    step = states.pop("common_step", steps[0] if steps else None)
    for group in groups:
        for name, value in adam.defaults.items():
            group.setdefault(name, adam.param_groups[0].get(name, value))
        if step is not None and HAVE_APEX_OR_TE:
            group["step"] = int(step)
        elif step is not None and isinstance(optimizer, DistributedOptimizer):
            group["step"] = float(step)
    if step is not None and not HAVE_APEX_OR_TE and not isinstance(optimizer, DistributedOptimizer):
        states["common_step"] = torch.tensor(float(step))
