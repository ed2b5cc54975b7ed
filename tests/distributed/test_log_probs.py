"""Vocab-parallel log p and statistics, torch and Triton, against float64 on the gathered logits."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from benchmarks.collectives import CollectiveRecorder
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.log_probs import token_log_probs
from megatron_probsft.vocab_parallel.shards import Kernels
from tests.support.ranks import run_ranks
from tests.support.sizes import rows

VOCAB = 331
BATCH, SEQUENCE = 3, 20
NEEDS = ("entropy", "collision", "correct")
KERNELS: list[Kernels] = ["torch", "triton"]
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda logits: logits.contiguous(),
    "[s, b] transposed": lambda logits: logits.transpose(0, 1).contiguous().transpose(0, 1),
    "column by column": lambda logits: logits.flatten(0, 1)
    .t()
    .contiguous()
    .t()
    .unflatten(0, (BATCH, SEQUENCE)),
}


def _family(alpha: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda log_p: -torch.expm1(alpha * log_p) / alpha


# f of log p, written out anew for float64.
OBJECTIVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "original": lambda log_p: -log_p,
    "p": lambda log_p: 1 - log_p.exp(),
    "GeneralFamily--0.5": _family(-0.5),
    "GeneralFamily-0": lambda log_p: -log_p,
    "GeneralFamily-1e-6": _family(1e-6),
    "GeneralFamily-1": _family(1),
    "GeneralFamily-8": _family(8),
    "GeneralFamily-50": _family(50),
    "OnlyTopP-0.2": lambda log_p: (1 - log_p.exp()) * (log_p.exp() >= 0.2),
    "OnlyBottomLogP-0.5": lambda log_p: -log_p * (log_p.exp() <= 0.5),
}
CASES = [("contiguous", name) for name in OBJECTIVES] + [(name, "original") for name in list(LAYOUTS)[1:]]


def _case(tp: int, dtype: torch.dtype, vocab: int = VOCAB) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits `[b, s, padded]`, labels, upstream): p from 1e-9 to 1, labels unevenly owned, some left out."""
    generator = torch.Generator().manual_seed(0)
    tokens = BATCH * SEQUENCE
    padded = -(-vocab // tp) * tp
    logits = torch.randn(tokens, padded, generator=generator) * 4
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[: tokens // 2] %= max(1, vocab // tp // 2)  # mostly on the first shard
    logits[torch.arange(0, 20), labels[:20]] += 15  # p near 1
    logits[:, vocab:] = 50  # padding would dominate if it were inside the softmax
    labels[[7, 33, 59]] = -100
    logits[33] = torch.nan  # never read
    upstream = torch.rand(tokens, generator=generator) * 3 - 1
    upstream[[3, 40]] = 0  # weights of 0
    shape = (BATCH, SEQUENCE)
    return logits.to(dtype).unflatten(0, shape), labels.view(shape), upstream.view(shape)


Result = dict[str, torch.Tensor]


def _run_case(kernels: Kernels, dtype: torch.dtype, layout: str, objective: str) -> Result:
    """log p, statistics and the gradient on this rank's shard."""
    group = distributed.tensor_group()
    logits, labels, upstream = _case(distributed.world_size(), dtype)
    shard = logits.chunk(distributed.world_size(), dim=-1)[distributed.rank()]
    shard = LAYOUTS[layout](shard).detach().requires_grad_()
    memory, strides = shard.data_ptr(), shard.stride()
    log_p, statistics = token_log_probs(
        shard, labels, vocab_size=VOCAB, group=group, needs=NEEDS, kernels=kernels
    )
    kept = labels != -100
    (get_objective(objective)(log_p[kept]) * upstream[kept]).sum().backward()
    assert shard.grad is not None
    assert (shard.grad.data_ptr(), shard.grad.stride()) == (memory, strides)  # no second [T, V]
    return {"log_p": log_p.detach(), "gradient": shard.grad, **statistics}


def _all_cases(kernels: Kernels) -> dict[tuple[torch.dtype, str, str], Result]:
    distributed.initialize(tensor_model_parallel_size=distributed.world_size())
    return {
        (dtype, layout, objective): _run_case(kernels, dtype, layout, objective)
        for dtype in (torch.float32, torch.bfloat16)
        for layout, objective in CASES
    }


@functools.cache
def _results(tp: int, kernels: Kernels) -> list[dict[tuple[torch.dtype, str, str], Result]]:
    return run_ranks(tp, _all_cases, kernels)


@functools.cache
def _exact(tp: int, dtype: torch.dtype, objective: str) -> Result:
    """The same in float64 on the whole vocabulary, by torch's own log_softmax and autograd."""
    logits, labels, upstream = _case(tp, dtype)
    exact = logits.double()[..., :VOCAB].requires_grad_()
    kept = labels != -100
    log_softmax = exact[kept].log_softmax(-1)
    log_p = log_softmax.gather(-1, labels[kept][:, None]).squeeze(-1)
    (OBJECTIVES[objective](log_p) * upstream[kept]).sum().backward()
    assert exact.grad is not None
    p = log_softmax.detach().exp()
    return {
        "log_p": log_p.detach(),
        "gradient": exact.grad,
        "entropy": -(p * log_softmax.detach()).sum(-1),
        "collision": p.square().sum(-1),
        "correct": logits[..., :VOCAB][kept].argmax(-1) == labels[kept],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layout", "objective"), CASES)
@pytest.mark.parametrize(
    ("kernels", "tp"),
    rows(itertools.product(KERNELS, [1, 2, 3]), fast=[("torch", 2)], rare=[("triton", 1), ("triton", 3)]),
)
def test_against_float64(kernels: Kernels, tp: int, layout: str, objective: str, dtype: torch.dtype) -> None:
    results = [rank[dtype, layout, objective] for rank in _results(tp, kernels)]
    exact = _exact(tp, dtype, objective)
    kept = _case(tp, dtype)[1] != -100
    for result in results:
        assert (result["log_p"][~kept] == 0).all()
        torch.testing.assert_close(result["log_p"][kept].double(), exact["log_p"], rtol=1e-6, atol=2e-6)
        for name in ("entropy", "collision"):
            torch.testing.assert_close(result[name][kept].double(), exact[name], rtol=1e-5, atol=2e-6)
        assert torch.equal(result["correct"][kept], exact["correct"])
    assert 0 < exact["correct"].sum() < kept.sum()
    gradient = torch.cat([result["gradient"] for result in results], dim=-1)
    # Triton's interpreter cuts off where the compiled kernel rounds (see test_triton_compiles).
    bfloat16 = 2**-7 if kernels == "triton" else 2**-8
    rtol = 1e-5 if dtype == torch.float32 else bfloat16
    torch.testing.assert_close(gradient[..., :VOCAB].double(), exact["gradient"], rtol=rtol, atol=1e-6)
    assert (gradient[..., VOCAB:] == 0).all()
    assert (gradient[~kept] == 0).all()


def _megatron_and_ours(kernels: Kernels) -> dict[str, torch.Tensor]:
    """f by composition on Megatron's own loss, and ours; whole vocabulary, since Megatron's takes no less."""
    distributed.initialize(tensor_model_parallel_size=distributed.world_size())
    vocab = 330
    logits, labels, upstream = (t[0] for t in _case(2, torch.float32, vocab))
    labels, upstream, logits = labels[8:], upstream[8:], logits[8:]  # the ones without −100
    shard = logits.chunk(2, dim=-1)[parallel_state.get_tensor_model_parallel_rank()].contiguous()
    objective = get_objective("GeneralFamily-8")
    theirs = shard.clone().requires_grad_()
    nll = vocab_parallel_cross_entropy(theirs * 1, labels)
    (objective(-nll) * upstream).sum().backward()
    ours = shard.clone().requires_grad_()
    log_p, _ = token_log_probs(
        ours, labels, vocab_size=vocab, group=distributed.tensor_group(), kernels=kernels
    )  # type: ignore[arg-type]
    (objective(log_p) * upstream).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    return {"nll": nll.detach(), "log_p": log_p.detach(), "theirs": theirs.grad, "ours": ours.grad}


@pytest.mark.parametrize("kernels", KERNELS)
def test_equals_composition_on_megatrons_loss(kernels: Kernels) -> None:
    for rank in run_ranks(2, _megatron_and_ours, kernels):
        torch.testing.assert_close(rank["log_p"], -rank["nll"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rank["ours"], rank["theirs"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gap", [60.0, -200.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_extreme_probabilities(kernels: Any, objective: str, gap: float) -> None:
    logits = torch.zeros(1, 8)
    logits[0, 3] = gap
    exact = logits.double().requires_grad_()
    others = exact[0, [0, 1, 2, 4, 5, 6, 7]].logsumexp(0) - exact[0, 3]
    exact_log_p = -torch.nn.functional.softplus(others)  # log_softmax is 0 in float64 too at a gap of 60
    logits.requires_grad_()
    log_p, _ = token_log_probs(logits, torch.tensor([3]), vocab_size=8, group=None, kernels=kernels)
    assert log_p.item() == pytest.approx(exact_log_p.item(), rel=1e-6, abs=1e-6)
    loss = get_objective(objective)(log_p)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
    if (objective, gap) == ("GeneralFamily--0.5", -200.0):
        return  # p^−0.5 = e^100 is beyond float32: linear from e^80 on, see the objective
    exact_loss = OBJECTIVES[objective](exact_log_p)
    exact_loss.backward()
    assert exact.grad is not None
    torch.testing.assert_close(loss[0].double().detach(), exact_loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kernels", KERNELS)
def test_threshold_includes_its_end(kernels: Any) -> None:
    logits = torch.zeros(1, 2, requires_grad=True)  # p = 1/2
    log_p, _ = token_log_probs(logits, torch.tensor([1]), vocab_size=2, group=None, kernels=kernels)
    for name in ("OnlyTopLogP-0.5", "OnlyBottomLogP-0.5"):
        assert get_objective(name)(log_p).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_batch_without_labels(kernels: Any, dtype: torch.dtype) -> None:
    logits = torch.full((4, 8), torch.nan, dtype=dtype, requires_grad=True)
    labels = torch.full((4,), -100)
    log_p, _ = token_log_probs(logits, labels, vocab_size=7, group=None, kernels=kernels)
    loss = get_objective("original")(log_p).sum()
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_nan_logit_is_not_hidden_and_a_second_backward_is_refused(kernels: Any) -> None:
    logits = torch.zeros(2, 8)
    logits[0, 5] = torch.nan
    logits.requires_grad_()
    log_p, _ = token_log_probs(logits, torch.tensor([3, 3]), vocab_size=8, group=None, kernels=kernels)
    assert log_p.isnan().tolist() == [True, False]
    log_p.sum().backward(retain_graph=True)
    assert logits.grad is not None
    assert logits.grad.isnan().any(1).tolist() == [True, False]
    with pytest.raises(RuntimeError, match="backward ran twice"):
        log_p.sum().backward()


@pytest.mark.parametrize("kernels", KERNELS)
def test_minus_infinity_is_a_probability_of_zero(kernels: Any) -> None:
    """A masked logit, and a whole row of them before the first finite block."""
    logits = torch.zeros(1, 9000)
    logits[0, :8995] = -torch.inf
    logits.requires_grad_()
    log_p, statistics = token_log_probs(
        logits, torch.tensor([8998]), vocab_size=9000, group=None, needs=NEEDS, kernels=kernels
    )
    log_p.sum().backward()
    assert logits.grad is not None
    assert log_p.item() == pytest.approx(-math.log(5), rel=1e-6)
    assert statistics["entropy"].item() == pytest.approx(math.log(5), rel=1e-6)
    assert statistics["collision"].item() == pytest.approx(0.2, rel=1e-6)
    assert logits.grad[0, :8995].abs().max() == 0


def test_what_cannot_be_right_is_refused() -> None:
    logits = torch.zeros(4, 6, 8).transpose(0, 2)[:, ::2].expand(8, 3, 4)
    with pytest.raises(ValueError, match="no rows without a copy"):
        token_log_probs(logits, torch.zeros(8, 3, dtype=torch.long), vocab_size=4, group=None)
    for label in (8, -1):
        with pytest.raises(RuntimeError, match="a label is neither"):
            token_log_probs(torch.zeros(1, 8), torch.tensor([label]), vocab_size=8, group=None)
    with pytest.raises(ValueError, match="vocab_size 9 is more than"):
        token_log_probs(torch.zeros(1, 8), torch.tensor([0]), vocab_size=9, group=None)


def _collectives(kernels: Kernels, needs: tuple[str, ...]) -> dict[str, list[tuple[str, int]]]:
    distributed.initialize(tensor_model_parallel_size=2)
    logits = torch.randn(5, 8, requires_grad=True)
    with CollectiveRecorder() as forward:
        log_p, _ = token_log_probs(
            logits, torch.tensor([3, 4, -100, 15, 9]), vocab_size=16, group=distributed.tensor_group(),
            needs=needs, kernels=kernels,
        )  # fmt: skip
    with CollectiveRecorder() as backward:
        log_p.sum().backward()
    return {"forward": forward.calls, "backward": backward.calls}


@pytest.mark.parametrize(("needs", "floats"), [((), 3), (("entropy",), 4), (NEEDS, 6)])
@pytest.mark.parametrize("kernels", KERNELS)
def test_one_collective_of_a_few_floats_per_token(
    kernels: Kernels, needs: tuple[str, ...], floats: int
) -> None:
    for calls in run_ranks(2, _collectives, kernels, needs):
        assert calls == {"forward": [("allgather_base", 5 * floats)], "backward": []}
