"""What Megatron-Core 0.19.2's optimizers need with torch's AdamW, where TE and Apex are missing.

Without the repairs of DistributedOptimizer a resumed run fails to load or, worse, silently drifts: after
loading, all parameters share one `step` tensor, so the bias correction runs as many times too fast as there
are parameters.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer


def prepare_torch_adam(optimizer: MegatronOptimizer) -> None:
    """Use torch's fused AdamW and mend every DistributedOptimizer; nothing to do with TE's or Apex's Adam."""
    if HAVE_APEX_OR_TE:
        return
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in inner.param_groups:
            group["fused"] = True  # one pass over parameters and moments instead of ten
        if isinstance(inner, DistributedOptimizer):
            _start_with_zero_state(inner.optimizer)
            inner.load_state_dict = types.MethodType(_load_state_dict, inner)  # type: ignore[method-assign]
            inner._set_main_param_and_optimizer_states = types.MethodType(  # type: ignore[method-assign]
                _set_states_without_step, inner
            )


def _start_with_zero_state(adam: torch.optim.Optimizer) -> None:
    """`state_dict()` of an unstepped optimizer asserts that every parameter has a step: give it 0."""
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
    """The checkpoint's tensors have no `step` (it stands in the parameter groups), but upstream reads it."""
    group, order = self.model_param_group_index_map[model_param]
    parameter = self.optimizer.param_groups[group]["params"][order]
    step = self.optimizer.state[parameter]["step"].clone()
    with torch.no_grad():
        DistributedOptimizer._set_main_param_and_optimizer_states(
            self, model_param, {"step": step, **tensors}
        )
