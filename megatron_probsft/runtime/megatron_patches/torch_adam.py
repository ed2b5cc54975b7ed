"""DistributedOptimizer saves and resumes with torch's AdamW, which it uses where TE and Apex are missing.

What: the optimizer starts with a state of zeros, each parameter keeps a `step` of its own after loading,
    and `step` is not looked for among a checkpoint's tensors. Also, AdamW is torch's fused one: one pass
    over parameters and moments instead of ten.
Why: an optimizer that has not stepped has no state, and saving it asserts; after loading, all parameters
    share one `step` tensor, so the bias correction runs too fast by their number; and loading fails, as
    `step` stands in the parameter groups.
Upstream: Megatron-Core, optimizer/distrib_optimizer.py:839 (`state_dict`), 1028 (`load_state_dict`), 1222
    (`_set_main_param_and_optimizer_states`).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import types
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
        optimizer.load_state_dict = types.MethodType(  # type: ignore[method-assign]
            _load_state_dict, optimizer
        )
        optimizer._set_main_param_and_optimizer_states = types.MethodType(  # type: ignore[method-assign]
            _set_states_without_step, optimizer
        )


def _start_with_zero_state(adam: torch.optim.Optimizer) -> None:
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _load_state_dict(self: DistributedOptimizer, state_dict: dict[str, Any]) -> None:
    DistributedOptimizer.load_state_dict(self, state_dict)
    for state in self.optimizer.state.values():
        state["step"] = state["step"].detach().clone()


def _set_states_without_step(
    self: DistributedOptimizer, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> None:
    group, order = self.model_param_group_index_map[model_param]
    parameter = self.optimizer.param_groups[group]["params"][order]
    step = self.optimizer.state[parameter]["step"].clone()
    with torch.no_grad():
        DistributedOptimizer._set_main_param_and_optimizer_states(
            self, model_param, {"step": step, **tensors}
        )
