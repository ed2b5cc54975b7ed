"""What Megatron-Core 0.19.2's optimizers need so that a resumed run continues where it was.

Of DistributedOptimizer's `fully_reshardable` checkpoints: parameters are cut from the gathered state by their
place in the buffer, paddings between buckets included, but the gathering leaves these out. So with several
buckets whose sizes do not divide by 128 and by the data-parallel size (a width of 576; three replicas), what
is saved of all but the first bucket is shifted (upstream logs "can lead to data corruption").

With torch's AdamW, where TE and Apex are missing, a resumed run fails to load or drifts: after loading, all
parameters share one `step` tensor, so the bias correction runs too fast by their number.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer


def repair(optimizer: MegatronOptimizer) -> None:
    """Mend every DistributedOptimizer; use torch's fused AdamW where TE's and Apex's are missing."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(inner, DistributedOptimizer):
            inner.get_parameter_state_dp_zero = types.MethodType(  # type: ignore[method-assign]
                _state_with_paddings, inner
            )
        if HAVE_APEX_OR_TE:
            continue
        for group in inner.param_groups:
            group["fused"] = True  # one pass over parameters and moments instead of ten
        if isinstance(inner, DistributedOptimizer):
            _start_with_zero_state(inner.optimizer)
            inner.load_state_dict = types.MethodType(_load_state_dict, inner)  # type: ignore[method-assign]
            inner._set_main_param_and_optimizer_states = types.MethodType(  # type: ignore[method-assign]
                _set_states_without_step, inner
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
    """The buckets' contents, end to end, to their places in the buffer."""
    spread = joined.new_zeros(numel)
    sizes = [bucket.numel_unpadded for bucket in buckets]
    for bucket, part in zip(buckets, joined.split(sizes), strict=True):
        spread[bucket.offset : bucket.offset + len(part)] = part
    return spread


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
