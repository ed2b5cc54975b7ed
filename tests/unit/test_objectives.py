"""Objectives against the paper's formulas in float64, at the edges of p too."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_probsft.objectives.registry import ObjectiveError, get_objective

LOG_P = torch.tensor([-200.0, -30.0, -3.0, -1.0, math.log(0.5), math.log(0.2), -0.3, -1e-6, -1e-30, 0.0])

# name → (f(p), s(p) = −f′(p)·p), both in float64 of log p; p in float32 decides the thresholds.
REFERENCES = {
    "original": (lambda x: -x, lambda x: torch.ones_like(x)),
    "logp": (lambda x: -x, lambda x: torch.ones_like(x)),
    "p": (lambda x: -torch.special.expm1(x), torch.exp),
    "GeneralFamily-8": (lambda x: -torch.special.expm1(8 * x) / 8, lambda x: torch.exp(8 * x)),
    "GeneralFamily-50": (lambda x: -torch.special.expm1(50 * x) / 50, lambda x: torch.exp(50 * x)),
    "GeneralFamily-1": (lambda x: -torch.special.expm1(x), torch.exp),
    "GeneralFamily-0": (lambda x: -x, lambda x: torch.ones_like(x)),
    "GeneralFamily-1e-6": (lambda x: -torch.special.expm1(1e-6 * x) / 1e-6, lambda x: torch.exp(1e-6 * x)),
    "GeneralFamily--0.1": (lambda x: torch.special.expm1(-0.1 * x) / 0.1, lambda x: torch.exp(-0.1 * x)),
    "OnlyTopP-0.2": (lambda x: _above(x) * -torch.special.expm1(x), lambda x: _above(x) * x.exp()),
    "OnlyBottomP-0.2": (lambda x: _below(x) * -torch.special.expm1(x), lambda x: _below(x) * x.exp()),
    "OnlyTopLogP-0.2": (lambda x: _above(x) * -x, lambda x: _above(x)),
    "OnlyBottomLogP-0.2": (lambda x: _below(x) * -x, lambda x: _below(x)),
}


def _above(x: torch.Tensor) -> torch.Tensor:
    return (x.float().exp() >= torch.tensor(0.2)).double()


def _below(x: torch.Tensor) -> torch.Tensor:
    return (x.float().exp() <= torch.tensor(0.2)).double()


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradient_weight(name: str) -> None:
    value, weight = REFERENCES[name]
    log_p = LOG_P.clone().requires_grad_()
    loss = get_objective(name)(log_p)
    loss.sum().backward()
    assert log_p.grad is not None
    exact = LOG_P.double()
    torch.testing.assert_close(loss.double(), value(exact), rtol=2e-5, atol=1e-37)
    torch.testing.assert_close(-log_p.grad.double(), weight(exact), rtol=2e-5, atol=1e-37)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(log_p.grad).all()


@pytest.mark.parametrize(
    "name", ["OnlyTopP-0.25", "OnlyBottomP-0.25", "OnlyTopLogP-0.25", "OnlyBottomLogP-0.25"]
)
def test_thresholds_include_p_equal_to_q(name: str) -> None:
    log_p = torch.tensor([0.25]).log()
    assert log_p.exp().item() == 0.25
    assert get_objective(name)(log_p).item() > 0


@pytest.mark.parametrize("name", REFERENCES)
def test_a_nan_is_not_hidden(name: str) -> None:
    assert get_objective(name)(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GeneralFamly-8", "did you mean GeneralFamily-α"),
        ("orginal", "did you mean original"),
        ("nll", "known: original, logp, p"),
        ("GeneralFamily", "needs a parameter"),
        ("GeneralFamily-", "needs a parameter"),
        ("GeneralFamily-x", "'x' is not a number"),
        ("GeneralFamily-inf", "out of range"),
        ("GeneralFamily-nan", "out of range"),
        ("OnlyTopP-1", "0 ≤ q < 1"),
        ("OnlyTopLogP--0.1", "0 ≤ q < 1"),
        ("OnlyBottomP-0", "0 < q ≤ 1"),
        ("OnlyBottomLogP-1.5", "0 < q ≤ 1"),
        ("p-2", "takes no parameter"),
    ],
)
def test_bad_names_say_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message) as caught:
        get_objective(name)
    assert "\n" not in str(caught.value)
