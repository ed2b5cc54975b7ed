"""What the denominators count, token by token: what an objective keeps, whatever float32 leaves of it."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_probsft.objectives.registry import get_objective, gradient_weight
from megatron_probsft.training.denominators import count
from megatron_probsft.training.micro_batch import MicroBatch
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision, Tokens

# p from 0 in float32 to 1
LOG_P = torch.tensor([-300.0, -150.0, -90.0, -5.0, math.log(0.5), -0.1, -1e-9, 0.0])


def _micro_batch(tokens: int) -> MicroBatch:
    some = torch.zeros(tokens, dtype=torch.int64)
    return MicroBatch(some[None], some[None], some, tokens, some, some, supervised_tokens=tokens)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("OnlyBottomP-0.3", 4),  # s = p is 0 for two of them
        ("OnlyTopP-0", 8),
        ("OnlyIntervalP-0-0.6", 5),
        ("OnlyTopLogP-0.5", 4),
        ("Brier", 8),  # s = p·(1 − p) is 0 at both ends
        ("GeneralFamily-50", 8),
        ("original", 8),
    ],
)
def test_kept_tokens_are_the_thresholds(name: str, kept: int) -> None:
    objective = get_objective(name)
    tokens = Tokens(objective(LOG_P), LOG_P, {})
    number = count("kept-tokens", _micro_batch(8), tokens, objective, 100, is_first=True)
    assert number.dtype == torch.int
    assert int(number) == kept
    if name in ("OnlyBottomP-0.3", "Brier", "GeneralFamily-50"):  # the reason for this test
        assert int((gradient_weight(objective, LOG_P) != 0).sum()) < kept


@pytest.mark.parametrize("path", ["materialized", "fused"])
def test_the_head_weighs_by_what_it_finds(path: str) -> None:
    """Against float64, with weights that depend on all of the tokens' probabilities at once."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(13, 1, 6, generator=generator)
    weight = torch.randn(20, 6, generator=generator).requires_grad_()
    weight.main_grad = torch.zeros_like(weight)  # type: ignore[attr-defined]
    labels = torch.randint(0, 20, (9,), generator=generator)
    rows = torch.arange(2, 11)

    def by_rank(log_p: torch.Tensor) -> torch.Tensor:
        return log_p.argsort().argsort().to(log_p.dtype) / log_p.exp().sum()

    seen: list[Tokens] = []

    def weigh(tokens: Tokens) -> torch.Tensor:
        seen.append(tokens)
        return by_rank(tokens.log_p)

    states = hidden.clone().requires_grad_()
    total, tokens = supervised_loss(
        states, OutputHead(weight, 20, None), Supervision(rows, labels, weigh), get_objective("p"),
        options=HeadOptions(path, chunk_tokens=4),  # type: ignore[arg-type]
    )  # fmt: skip
    total.backward()

    exact_hidden = hidden.double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    logits = exact_hidden[rows, 0] @ exact_weight.t()
    log_p = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    losses = (1 - log_p.exp()) * by_rank(log_p.detach())
    losses.sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].losses.double(), (1 - log_p.exp()).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens.losses.double(), losses.detach(), rtol=1e-5, atol=1e-6)
    assert states.grad is not None
    torch.testing.assert_close(states.grad.double(), exact_hidden.grad, rtol=1e-4, atol=1e-6)
    found = (weight.main_grad + weight.grad).to_dense()  # type: ignore[attr-defined]
    torch.testing.assert_close(found.double(), exact_weight.grad, rtol=1e-4, atol=1e-6)
