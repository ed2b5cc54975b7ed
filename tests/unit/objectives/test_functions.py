"""Losses and gradient weights against formulas in float64, at the edges of p too; no label is pushed down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_probsft.objectives.check import trial_log_p, trial_statistics
from megatron_probsft.objectives.forms import FORMS
from megatron_probsft.objectives.registry import (
    get_objective,
    gradient_weight,
    hidden_threshold,
    with_statistic,
)

LOG_P = torch.tensor(
    [-200, -170, -160, -100, -30, -3, -1.6, -1, math.log(0.5), math.log(0.2), -0.3, -1e-3, -1e-6, -1e-26, 0]
)
# Unrelated to log p and to one another, so that a mix-up shows. The second entropy is just above log V.
ENTROPY = torch.tensor([0, 10.3973, 7.5, 0.02, 3.5, 2.5, 0.3, 1.5, 5.5, 0.9, 4.5, 9.5, 0.05, 6.5, 1e-3])
COLLISION = torch.tensor([1, 0.003, 0.9, 0.5, 0.2, 0.05, 0.6, 0.7, 0.01, 0.35, 0.8, 0.02, 0.95, 0.4, 1e-4])
STATISTICS: dict[str, Any] = {
    "entropy": ENTROPY,
    "collision": COLLISION,
    "correct": LOG_P > -1,
    "vocab_size": 32768,
}

H, C = ENTROPY.double(), COLLISION.double()


def _u(x: torch.Tensor) -> torch.Tensor:
    return -torch.special.expm1(x)


def _inside(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """1[low ≤ p ≤ high], decided in float32."""
    p = x.float().exp()
    return ((p >= torch.tensor(low)) & (p <= torch.tensor(high))).double()


def _power(x: torch.Tensor, alpha: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return -torch.special.expm1(alpha * x) / alpha, torch.exp(alpha * x)


def _negative_power(x: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear in log p from p^α = e^80 on."""
    inner, weight = _power(x.clamp(min=80 / alpha), alpha)
    line = (1 - math.exp(80)) / alpha + math.exp(80) * (80 / alpha - x)
    beyond = alpha * x > 80
    return torch.where(beyond, line, inner), torch.where(beyond, math.exp(80), weight)


def _focal(x: torch.Tensor, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    u = _u(x)
    at_one = torch.zeros_like(x)  # the limit at p = 1
    weight = u**gamma - gamma * x.exp() * u ** (gamma - 1) * x
    return -(u**gamma) * x, torch.where(x == 0, at_one, weight)


def _weighted(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -weight * x, weight


def _kept(x: torch.Tensor, low: float, high: float, *, nll: bool) -> tuple[torch.Tensor, torch.Tensor]:
    keep = _inside(x, low, high)
    return (keep * -x, keep) if nll else (keep * _u(x), keep * x.exp())


# name → (f, s) of log p in float64. Where a factor has no gradient, s is not −f′·p.
FUNCTIONS_OF_P: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "original": lambda x: (-x, torch.ones_like(x)),
    "logp": lambda x: (-x, torch.ones_like(x)),
    "p": lambda x: (_u(x), x.exp()),
    "GeneralFamily-8": lambda x: _power(x, 8),
    "GeneralFamily-50": lambda x: _power(x, 50),
    "GeneralFamily-1": lambda x: _power(x, 1),
    "GeneralFamily-0": lambda x: (-x, torch.ones_like(x)),
    "GeneralFamily-1e-6": lambda x: _power(x, 1e-6),
    "GeneralFamily-1e-40": lambda x: (-x, torch.ones_like(x)),
    "GeneralFamily--0.1": lambda x: _negative_power(x, -0.1),
    "GeneralFamily--0.5": lambda x: _negative_power(x, -0.5),
    "GeneralFamily--50": lambda x: _negative_power(x, -50),
    "OnlyTopP-0.2": lambda x: _kept(x, 0.2, 1, nll=False),
    "OnlyBottomP-0.2": lambda x: _kept(x, 0, 0.2, nll=False),
    "OnlyIntervalP-0.2-0.5": lambda x: _kept(x, 0.2, 0.5, nll=False),
    "OnlyTopLogP-0.2": lambda x: _kept(x, 0.2, 1, nll=True),
    "OnlyBottomLogP-0.2": lambda x: _kept(x, 0, 0.2, nll=True),
    "OnlyIntervalLogP-0.2-0.5": lambda x: _kept(x, 0.2, 0.5, nll=True),
    "ProFit-0.3": lambda x: _kept(x, 0.3, 1, nll=True),
    "LogOneMinusP-0.1": lambda x: (torch.log1p(_u(x) / 0.1), x.exp() / (_u(x) + 0.1)),
    "LogOneMinusP-1e-6": lambda x: (torch.log1p(_u(x) / 1e-6), x.exp() / (_u(x) + 1e-6)),
    "Brier": lambda x: (_u(x) ** 2 / 2, x.exp() * _u(x)),
    "Huber-0.3": lambda x: (
        torch.where(_u(x) <= 0.3, _u(x) ** 2 / 2, 0.3 * (_u(x) - 0.15)),
        x.exp() * _u(x).clamp(max=0.3),
    ),
    "Focal-0": lambda x: (-x, torch.ones_like(x)),
    "Focal-0.5": lambda x: _focal(x, 0.5),
    "Focal-2": lambda x: _focal(x, 2),
    "Poly1-2": lambda x: (-x + 2 * _u(x), 1 + 2 * x.exp()),
    "Poly1--1": lambda x: (-x - _u(x), _u(x)),
    "BoundedNLL-0.05": lambda x: (-torch.log1p(-0.95 * _u(x)), 0.95 * x.exp() / (0.95 * x.exp() + 0.05)),
    "BoundedNLL-1e-20": lambda x: (-torch.log(x.exp() + 1e-20), x.exp() / (x.exp() + 1e-20)),
    "TrSFT-0.1": lambda x: (
        torch.where(x.exp() >= 0.1, -x, 1 - x.exp() / 0.1 - math.log(0.1)),
        (x.exp() / 0.1).clamp(max=1),
    ),
    "TrSFT-1": lambda x: (_u(x), x.exp()),
}
FIXED_FACTORS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "DFT": lambda x: _weighted(x, x.exp()),
    "DFT-0.5": lambda x: _weighted(x, x.exp() ** 0.5),
    "TALR-0.5-0.01": lambda x: _weighted(x, (x.exp() ** 2).clamp(min=0.01)),
    "CHORD": lambda x: _weighted(x, x.exp() * _u(x)),
    "EAFT-1": lambda x: _weighted(x, (H / math.log(32768)).clamp(max=1)),
    "EAFT-0.5": lambda x: _weighted(x, (H / math.log(32768)).clamp(max=1) ** 0.5),
    "DEFT": lambda x: _power(x, C),
    "Cayley": lambda x: _power(x, (x.exp() / (2 - x.exp())).clamp(min=0.001)),
    "Cayley-0.4": lambda x: _power(x, 0.4 + 0.6 * x.exp() / (2 - x.exp())),
    "IDFT-0.1-2": lambda x: _weighted(x, x.exp() ** (1 / (x.exp() * H.exp())).clamp(0.1, 2)),
}
REFERENCES = {**FUNCTIONS_OF_P, **FIXED_FACTORS}


def test_every_registered_objective_has_a_reference() -> None:
    covered = {(name.partition("-")[0], "-" in name) for name in REFERENCES}
    assert {(form.name, bool(form.letters)) for form in FORMS} == covered


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradient_weight(name: str) -> None:
    value, weight = REFERENCES[name](LOG_P.double())
    objective = get_objective(name)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(objective(LOG_P, **STATISTICS).double(), value, **close)
    torch.testing.assert_close(gradient_weight(objective, LOG_P, **STATISTICS).double(), weight, **close)


@pytest.mark.parametrize("name", FUNCTIONS_OF_P)
def test_the_references_weight_is_minus_f_prime_times_p(name: str) -> None:
    x = torch.linspace(-150, -0.01, 997, dtype=torch.float64).requires_grad_()
    value, weight = FUNCTIONS_OF_P[name](x)
    (derivative,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(-derivative, weight.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["GeneralFamily--0.5", "p", "GeneralFamily-1e-6", "TrSFT-0.1", "OnlyTopP-0"])
def test_tails_are_right_relatively_and_not_only_nearly_zero(name: str) -> None:
    log_p = torch.tensor([-80.0, -60.0, -40.0, -20.0])
    _, weight = {"OnlyTopP-0": REFERENCES["p"], **REFERENCES}[name](log_p.double())
    found = gradient_weight(get_objective(name), log_p)
    torch.testing.assert_close(found.double(), weight, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [form.example for form in FORMS] + ["Focal-0.5", "Poly1--1"])
def test_no_weight_is_negative(name: str) -> None:
    log_p = trial_log_p()
    assert log_p.min() == -200
    assert log_p.max() == 0
    for statistics in trial_statistics(log_p):
        weight = gradient_weight(get_objective(name), log_p, **statistics)
        assert weight.isfinite().all()
        assert (weight >= 0).all()
        assert weight.max() > 0


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("OnlyTopP-0.7", [0.7, 1.0], [0.69]),
        ("OnlyTopP-0.8", [0.8, 1.0], [0.79]),  # 0.7 is smaller in float32, 0.8 larger
        ("OnlyBottomP-0.7", [0.7, 0.125], [0.71]),
        ("OnlyBottomP-0.8", [0.8, 0.125], [0.81]),
        ("OnlyIntervalP-0.7-0.8", [0.7, 0.8], [0.69, 0.81]),
        ("OnlyTopLogP-0.7", [0.7, 0.8], [0.69]),
        ("OnlyBottomLogP-0.8", [0.8, 0.125], [0.81]),
        ("OnlyIntervalLogP-0.8-0.9", [0.8, 0.9], [0.79, 0.91]),
        ("OnlyIntervalLogP-0.4-0.7", [0.4, 0.7], [0.39, 0.71]),
        ("ProFit-0.7", [0.7, 0.9], [0.69]),
    ],
)
def test_both_ends_are_inside(name: str, inside: list[float], outside: list[float]) -> None:
    objective = get_objective(name)
    ends = torch.tensor(inside).log()
    assert torch.equal(ends.exp(), torch.tensor(inside))
    assert (gradient_weight(objective, ends) > 0).all()
    assert (gradient_weight(objective, torch.tensor(outside).log()) == 0).all()


KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "OnlyTopP-0.2": lambda p: p >= 0.2,
    "OnlyTopP-0": lambda p: p >= 0,
    "OnlyBottomP-0.5": lambda p: p <= 0.5,
    "OnlyBottomP-1": lambda p: p <= 1,
    "OnlyIntervalP-0.2-0.5": lambda p: (p >= 0.2) & (p <= 0.5),
    "OnlyTopLogP-0.2": lambda p: p >= 0.2,
    "OnlyBottomLogP-0.5": lambda p: p <= 0.5,
    "OnlyIntervalLogP-0.2-0.5": lambda p: (p >= 0.2) & (p <= 0.5),
    "ProFit-0.3": lambda p: p >= 0.3,
}


@pytest.mark.parametrize("name", {**KEPT, **REFERENCES})
def test_what_is_kept_is_the_thresholds_and_not_what_float32_leaves(name: str) -> None:
    """p from e^−200, whose p is 0 in float32, to 1, where 1 − p is: kept where the threshold says so."""
    p = torch.logspace(-80, 0, 641, dtype=torch.float64)
    objective = get_objective(name)
    statistics: dict[str, Any] = {
        "entropy": p.float(), "collision": p.float(), "correct": p > 0.5, "vocab_size": 100
    }  # fmt: skip
    kept = objective.kept(p.log().float(), **statistics)
    same_kind = [k for k in KEPT if k.partition("-")[0] == name.partition("-")[0]]
    if name in KEPT:
        assert torch.equal(kept, KEPT[name](p))
    elif not same_kind:
        assert kept.all()
    with_entropy = with_statistic(objective, "entropy")
    assert torch.equal(with_entropy.kept(p.log().float(), **statistics), kept)


def test_a_weight_that_underflows_is_no_threshold() -> None:
    for name in [*REFERENCES, *KEPT, "GeneralFamily-1e6", "DFT-1e6", "Focal-1e6", "EAFT-1e6", "IDFT-0-1e6"]:
        assert hidden_threshold(get_objective(name)) is None, name


def _some(tokens: slice) -> dict[str, Any]:
    return {key: value if isinstance(value, int) else value[tokens] for key, value in STATISTICS.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_log_p_rounded_to_just_above_zero_is_p_equal_to_one(name: str) -> None:
    statistics = _some(slice(-1, None))
    above, one = torch.tensor([1.2e-7]), torch.tensor([0.0])
    objective = get_objective(name)
    torch.testing.assert_close(
        gradient_weight(objective, above, **statistics),
        gradient_weight(objective, one, **statistics),
        rtol=0.2 if name == "LogOneMinusP-1e-6" else 1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_a_nan_is_not_hidden(name: str) -> None:
    statistics = _some(slice(2))
    losses = get_objective(name)(torch.tensor([math.nan, -1.0]), **statistics)
    assert losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("original", ()),
        ("EAFT-1", ("entropy", "vocab_size")),
        ("DEFT", ("collision",)),
        ("IDFT-0.1-2", ("entropy",)),
        ("Cayley-0.4", ()),
    ],
)
def test_needs_are_named(name: str, needs: tuple[str, ...]) -> None:
    objective = get_objective(name)
    assert objective.needs == needs
    assert objective.formula
    assert objective.weight
    assert objective.citation
    if needs:
        with pytest.raises(KeyError, match=needs[0]):
            objective(LOG_P)
