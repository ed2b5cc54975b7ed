"""The output head, materialized and fused, against float64 on the whole matrix; its collectives."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.collectives import CollectiveRecorder
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision
from tests.support.ranks import run_ranks
from tests.support.sizes import rows

VOCAB, HIDDEN, SEQUENCE = 61, 10, 48
ROWS = [3, 4, 5, 11, 17, 20, 21, 22, 30, 31, 32, 40, 41, 46, 47]
OBJECTIVES = ["original", "GeneralFamily-8", "EAFT-1"]
PATHS = {
    "materialized": HeadOptions("materialized"),
    "fused": HeadOptions("fused", chunk_tokens=4),
    "fused, one row at a time": HeadOptions("fused", chunk_tokens=1),
    "fused, one chunk": HeadOptions("fused", chunk_tokens=1000),
    "fused, Triton": HeadOptions("fused", chunk_tokens=6, kernels="triton"),
}
SCALE = 4.0


def _case(tp: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    padded = -(-VOCAB // tp) * tp
    hidden = torch.randn(SEQUENCE, 1, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCAB, (len(ROWS),), generator=generator)
    labels[::2] = (hidden[ROWS, 0] @ weight.t()).argmax(1)[::2]  # p of every size
    return {
        "hidden": hidden.to(dtype),
        "weight": F.pad(weight, (0, 0, 0, padded - VOCAB), value=0.7).to(dtype),
        "rows": torch.tensor(ROWS),
        "labels": labels,
        "token_weights": torch.rand(len(ROWS), generator=generator) * 2,
    }


def _run_head(path: str, objective: str, dtype: torch.dtype, sequence_parallel: bool) -> dict[str, Any]:
    case = _case(distributed.world_size(), dtype)
    hidden, weight = (
        case["hidden"].chunk(distributed.world_size() if sequence_parallel else 1)[
            distributed.rank() if sequence_parallel else 0
        ],
        case["weight"].chunk(distributed.world_size())[distributed.rank()],
    )
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    weight.main_grad = torch.full(weight.shape, 0.5)  # type: ignore[attr-defined]
    kept = hidden.detach().clone()
    with CollectiveRecorder() as forward:
        total, tokens = supervised_loss(
            hidden,
            OutputHead(weight, VOCAB, distributed.tensor_group(), sequence_parallel),
            Supervision(case["rows"], case["labels"], case["token_weights"]),
            get_objective(objective),
            options=PATHS[path],
            grad_scale=SCALE,
        )
    with CollectiveRecorder() as backward:
        (total * SCALE).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert torch.equal(hidden.detach(), kept)  # the model's own states are not overwritten
    return {
        "total": total.detach(),
        "log_p": tokens.log_p,
        "losses": tokens.losses,
        "hidden": hidden.grad,
        # what Megatron's DDP does
        "weight": (weight.main_grad + weight.grad - 0.5).to_dense(),  # type: ignore[attr-defined]
        "collectives": {"forward": forward.calls, "backward": backward.calls},
    }


def _every_head() -> dict[tuple, dict[str, Any]]:
    distributed.initialize(tensor_model_parallel_size=distributed.world_size())
    return {
        (path, objective, dtype, parallel): _run_head(path, objective, dtype, parallel)
        for path in PATHS
        for objective in OBJECTIVES
        for dtype in (torch.float32, torch.bfloat16)
        for parallel in {False, distributed.world_size() > 1}
    }


@functools.cache
def _results(tp: int) -> list[dict[tuple, dict[str, Any]]]:
    return run_ranks(tp, _every_head)


@functools.cache
def _exact(tp: int, objective: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    case = _case(tp, dtype)
    hidden = case["hidden"].double().requires_grad_()
    weight = case["weight"].double().requires_grad_()
    log_softmax = F.linear(hidden[case["rows"], 0], weight[:VOCAB]).log_softmax(-1)
    log_p = log_softmax.gather(1, case["labels"][:, None]).squeeze(1)
    entropy = -(log_softmax * log_softmax.exp()).sum(-1).detach()
    losses = {
        "original": -log_p,
        "GeneralFamily-8": (1 - (8 * log_p).exp()) / 8,
        "EAFT-1": -log_p * entropy / torch.tensor(VOCAB).log(),
    }[objective] * case["token_weights"]
    (losses.sum() * SCALE).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "total": losses.sum().detach(), "log_p": log_p.detach(), "losses": losses.detach(),
        "hidden": hidden.grad, "weight": weight.grad,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("tp", "sequence_parallel"),
    rows([(1, False), (2, False), (2, True), (3, False), (3, True)], fast=[(2, False), (2, True)]),
)
def test_against_float64(
    tp: int, sequence_parallel: bool, path: str, objective: str, dtype: torch.dtype
) -> None:
    results = [rank[path, objective, dtype, sequence_parallel] for rank in _results(tp)]
    exact = _exact(tp, objective, dtype)
    # bfloat16 logits have 8 bits: what a GEMM of these inputs gives, not what the loss adds.
    tolerance = 1e-5 if dtype == torch.float32 else 0.03

    def compare(actual: torch.Tensor, name: str) -> None:
        allowed = tolerance * exact[name].abs().max().item()
        torch.testing.assert_close(actual.double(), exact[name], rtol=tolerance, atol=allowed)

    for result in results:
        for name in ("total", "log_p", "losses"):
            compare(result[name], name)
        if not sequence_parallel:
            compare(result["hidden"], "hidden")
    if sequence_parallel:
        compare(torch.cat([result["hidden"] for result in results]), "hidden")
    compare(torch.cat([result["weight"] for result in results]), "weight")


def test_collectives() -> None:
    """T = 15 tokens, h = 10, V = 61: gathered logits would be 915 elements, or 2928 of all rows."""
    statistics = {
        "materialized": [("allgather_base", 15 * 3)],
        "fused": [("allgather_base", 2 * 3)] * 7 + [("allgather_base", 1 * 3)],  # half chunks of 2 rows
    }
    for rank in _results(2):
        for path, expected in statistics.items():
            plain = rank[path, "original", torch.float32, False]["collectives"]
            assert plain == {"forward": expected, "backward": [("allreduce", 15 * 10)]}
            parallel = rank[path, "original", torch.float32, True]["collectives"]
            # this rank's half of the hidden states and of their gradient
            assert parallel["forward"] == [("allgather_base", 24 * 10), *expected]
            assert parallel["backward"] == [("reduce_scatter_base", 24 * 10)]


def _alone(options: HeadOptions, **changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of losses, hidden states, weight) on one shard."""
    case = _case(1, torch.float32)
    hidden, weight = case["hidden"].requires_grad_(), case["weight"].requires_grad_()
    if changes.get("main_grad", True):
        weight.main_grad = torch.zeros_like(weight)  # type: ignore[attr-defined]
    if changes.get("frozen"):
        weight.requires_grad_(False)
    rows = case["rows"][: changes.get("tokens", len(ROWS))]
    total, _ = supervised_loss(
        hidden, OutputHead(weight, VOCAB, None), Supervision(rows, case["labels"][: len(rows)]),
        get_objective("p"), options=options,
    )  # fmt: skip
    return total, hidden, weight


FUSED = HeadOptions("fused", chunk_tokens=4)


def test_micro_batches_add_up_in_main_grad() -> None:
    total, _, weight = _alone(FUSED)
    total.backward()
    once = weight.main_grad.clone()  # type: ignore[attr-defined]
    assert once.abs().sum() > 0
    case = _case(1, torch.float32)
    for _ in range(2):
        total, _ = supervised_loss(
            case["hidden"], OutputHead(weight, VOCAB, None), Supervision(case["rows"], case["labels"]),
            get_objective("p"), options=FUSED,
        )  # fmt: skip
        total.backward()
    torch.testing.assert_close(weight.main_grad, 3 * once)  # type: ignore[attr-defined]


def test_no_supervised_token() -> None:
    for options in (FUSED, HeadOptions("materialized")):
        total, hidden, weight = _alone(options, tokens=0)
        total.backward()
        assert total.item() == 0
        assert hidden.grad is not None
        assert hidden.grad.abs().sum() == 0
        assert weight.main_grad.abs().sum() == 0  # type: ignore[attr-defined]


def test_a_frozen_weight_and_validation_make_no_weight_gradient() -> None:
    reference, expected, _ = _alone(HeadOptions("materialized"))
    reference.backward()
    total, hidden, _ = _alone(FUSED, frozen=True, main_grad=False)
    total.backward()
    torch.testing.assert_close(hidden.grad, expected.grad)
    with torch.no_grad():
        total, _, weight = _alone(FUSED)
    torch.testing.assert_close(total, reference.detach())
    assert weight.main_grad.abs().sum() == 0  # type: ignore[attr-defined]


def test_auto_takes_the_fused_head_where_it_can() -> None:
    _, _, weight = _alone(HeadOptions())
    assert weight.main_grad.abs().sum() > 0  # type: ignore[attr-defined]  # made in forward
    total, _, weight = _alone(HeadOptions(), main_grad=False)
    total.backward()
    assert weight.grad is not None


def test_what_the_fused_head_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="main_grad"):
        _alone(FUSED, main_grad=False)
    total, _, _ = _alone(FUSED)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        total.backward()
    total, _, _ = _alone(FUSED)
    with pytest.raises(RuntimeError, match="upstream is not grad_scale"):
        (total * 2).backward()
