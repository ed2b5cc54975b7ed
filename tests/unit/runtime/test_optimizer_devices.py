"""Every tensor of the optimizer's state lies where its parameter lies: fused Adam does not look."""

from __future__ import annotations

import types

import torch

from megatron_probsft.runtime.megatron_patches import torch_adam


def _adam() -> torch.optim.AdamW:
    """Return an optimizer of parameters on another device than new tensors are on; it stands for a GPU."""
    return torch.optim.AdamW([torch.nn.Parameter(torch.empty(3, device="meta")) for _ in range(2)])


def _assert_beside_parameters(adam: torch.optim.AdamW) -> None:
    assert len(adam.state) == 2
    for parameter, state in adam.state.items():
        for name, value in state.items():
            assert value.device == parameter.device, name
    assert len({id(state["step"]) for state in adam.state.values()}) == 2  # each has its own


def test_the_state_before_the_first_step() -> None:
    adam = _adam()
    torch_adam._start_with_zero_state(adam)
    _assert_beside_parameters(adam)


def test_the_state_after_loading() -> None:
    adam = _adam()
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
    torch_adam.set_step(types.SimpleNamespace(optimizer=adam), 7.0)
    _assert_beside_parameters(adam)
