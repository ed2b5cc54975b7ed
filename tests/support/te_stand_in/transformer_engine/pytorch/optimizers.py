"""Adam, and operations on lists of tensors."""

from __future__ import annotations

from typing import Any

import torch

from transformer_engine.stand_in import calls, check_arguments, since


class FusedAdam(torch.optim.Optimizer):
    """AdamW whose step is counted in its groups. A tensor's state is its two moments, in float32."""

    def __init__(self, params: Any, **options: Any) -> None:
        check_arguments("FusedAdam", options)
        assert options.pop("adam_w_mode", True), "Adam, not AdamW"
        assert not options.pop("capturable", False)
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        assert not options.keys() - defaults.keys(), options
        super().__init__(params, defaults | options | {"bias_correction": True})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the two moments only."""
        for state in state_dict["state"].values():
            for name in state:
                if name not in ("exp_avg", "exp_avg_sq", "master_param"):
                    raise KeyError(name)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None, grad_scaler: Any = None) -> None:  # type: ignore[override]
        calls["FusedAdam", "step"] += 1
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            assert group["bias_correction"]
            assert type(group["step"]) is int, f"step is {group['step']!r}: a tensor would be read each time"
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
                assert state.keys() == {"exp_avg", "exp_avg_sq"}
                assert {each.device for each in state.values()} == {parameter.device}
                if parameter.grad is not None:
                    _adam(parameter, state, group)


def _adam(parameter: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
    first, second = group["betas"]
    assert parameter.grad is not None
    grad, mean, square = parameter.grad.float(), state["exp_avg"], state["exp_avg_sq"]
    mean.mul_(first).add_(grad, alpha=1 - first)
    square.mul_(second).addcmul_(grad, grad, value=1 - second)
    scale = (square / (1 - second ** group["step"])).sqrt_().add_(group["eps"])
    update = (mean / (1 - first ** group["step"])).div_(scale)
    update.add_(parameter, alpha=group["weight_decay"])
    parameter.sub_(update, alpha=group["lr"])


class FusedSGD:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


def multi_tensor_applier(op: Any, overflow: torch.Tensor, tensor_lists: list[Any], *args: Any) -> Any:
    assert overflow.dtype == torch.int32
    assert len({len(tensors) for tensors in tensor_lists}) == 1, "Expected aligned multi-tensor lists."
    return op(2048 * 32, overflow, tensor_lists, *args)


def multi_tensor_l2norm(
    _chunk: int, _overflow: torch.Tensor, tensor_lists: list[Any], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    assert not per_tensor
    norms = [tensor.float().norm() for tensor in tensor_lists[0]]
    return torch.stack(norms).norm().reshape(1), None


def multi_tensor_scale(_chunk: int, _overflow: torch.Tensor, tensor_lists: list[Any], scale: float) -> None:
    assert isinstance(scale, float), "a tensor would be read from the device"
    _scale(tensor_lists, scale)


def _scale(tensor_lists: list[Any], scale: Any) -> None:
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)


if since("2.14"):

    def multi_tensor_scale_tensor(
        _chunk: int, _overflow: torch.Tensor, tensor_lists: list[Any], scale: torch.Tensor
    ) -> None:
        assert torch.is_tensor(scale)
        _scale(tensor_lists, scale)
