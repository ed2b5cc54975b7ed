"""Recomputation of activations, and named states of the random generator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from transformer_engine.pytorch.fp8 import FP8GlobalStateManager, fp8_autocast
from transformer_engine.stand_in import calls


class CudaRNGStatesTracker:
    """The CPU generator's states here, by their names."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}
        self.seeds_: set[int] = set()

    def get_states(self) -> dict[str, torch.Tensor]:
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        self.states_ = states

    def add(self, name: str, seed: int) -> None:
        if seed in self.seeds_ or name in self.states_:
            raise RuntimeError(f"seed {seed} or state {name} already exists")
        self.seeds_.add(seed)
        before = torch.get_rng_state()
        torch.manual_seed(seed)
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(before)

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        if name not in self.states_:
            raise KeyError(f"cuda rng state {name} is not added")
        before = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(before)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's result; what it computes on the way is computed anew in backward, under the same FP8."""
    assert not kwargs.pop("distribute_saved_activations", False)
    assert callable(kwargs.pop("get_rng_state_tracker"))
    assert kwargs.pop("tp_group") is not None
    calls["checkpoint", len(args)] += 1
    fp8, recipe = FP8GlobalStateManager.is_fp8_enabled(), FP8GlobalStateManager.get_fp8_recipe()
    return _Checkpoint.apply(lambda *given: function(*given, **kwargs), (fp8, recipe), *args)


class _Checkpoint(torch.autograd.Function):
    """Reentrant, as Transformer Engine's."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], fp8: tuple[bool, Any], *args: Any) -> Any:
        ctx.function, ctx.fp8 = function, fp8
        ctx.others = [None if torch.is_tensor(arg) else arg for arg in args]
        ctx.save_for_backward(*[arg if torch.is_tensor(arg) else None for arg in args])
        with torch.no_grad():
            return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs = [
            other if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)
            for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
        ]
        with torch.enable_grad(), fp8_autocast(enabled=ctx.fp8[0], fp8_recipe=ctx.fp8[1]):
            outputs = ctx.function(*inputs)
        outputs = (outputs,) if torch.is_tensor(outputs) else outputs
        pairs = [
            (output, grad)
            for output, grad in zip(outputs, grads, strict=True)
            if torch.is_tensor(output) and output.requires_grad
        ]
        torch.autograd.backward([output for output, _ in pairs], [grad for _, grad in pairs])
        return None, None, *(each.grad if torch.is_tensor(each) else None for each in inputs)


@contextlib.contextmanager
def activation_recompute_forward(
    activation_recompute: bool = False, recompute_phase: bool = False
) -> Iterator[None]:
    yield


def is_fp8_activation_recompute_enabled() -> bool:
    return False
