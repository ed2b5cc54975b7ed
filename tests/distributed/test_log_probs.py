"""Vocab-parallel log-probabilities and head against float64 on the gathered logits, and their collectives."""

from __future__ import annotations

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.head import supervised_log_probs
from megatron_probsft.vocab_parallel.log_probs import token_log_probs
from tests.ranks import run_ranks

OBJECTIVES = ["original", "p", "GeneralFamily-8", "OnlyTopP-0.2", "OnlyBottomLogP-0.5"]


def _case(vocab: int, tp: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits `[T, padded]`, labels, upstream): probabilities from 1e-9 to 1, labels unevenly owned."""
    generator = torch.Generator().manual_seed(0)
    tokens = 150
    padded = -(-vocab // tp) * tp
    logits = torch.randn(tokens, padded, generator=generator) * 4
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[: tokens // 2] = labels[: tokens // 2] % max(1, vocab // tp // 2)  # mostly on the first shard
    logits[torch.arange(0, 40), labels[:40]] += 15  # p near 1
    logits[:, vocab:] = 50  # padding would dominate if it were inside the softmax
    upstream = torch.rand(tokens, generator=generator) * 3 - 1
    return logits.to(dtype), labels, upstream


def _values_and_gradients(
    vocab: int, dtype: torch.dtype, objective: str
) -> tuple[torch.Tensor, torch.Tensor]:
    tp = distributed.world_size()
    distributed.initialize(tensor_model_parallel_size=tp)
    logits, labels, upstream = _case(vocab, tp, dtype)
    rank = parallel_state.get_tensor_model_parallel_rank()
    shard = logits.chunk(tp, dim=1)[rank].contiguous().requires_grad_()
    memory = shard.data_ptr()
    log_p = token_log_probs(shard, labels, vocab_size=vocab, group=distributed.tensor_group())
    (get_objective(objective)(log_p) * upstream).sum().backward()
    assert shard.grad is not None
    assert shard.grad.data_ptr() == memory  # no second [T, V]
    return log_p.detach(), shard.grad


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_against_float64(tp: int, dtype: torch.dtype, objective: str) -> None:
    vocab = 331
    results = run_ranks(tp, _values_and_gradients, vocab, dtype, objective)
    logits, labels, upstream = _case(vocab, tp, dtype)
    exact = logits.double()[:, :vocab].requires_grad_()
    log_p = exact.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    (get_objective(objective)(log_p) * upstream).sum().backward()
    assert exact.grad is not None
    gradient = torch.cat([gradient for _, gradient in results], dim=1)
    for value, _ in results:
        torch.testing.assert_close(value.double(), log_p.detach(), rtol=1e-6, atol=2e-6)
    rounding = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (2**-8, 1e-6)}[dtype]
    torch.testing.assert_close(gradient[:, :vocab].double(), exact.grad, rtol=rounding[0], atol=rounding[1])
    assert (gradient[:, vocab:] == 0).all()


def _megatron(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    tp = distributed.world_size()
    distributed.initialize(tensor_model_parallel_size=tp)
    logits, labels, upstream = _case(vocab, tp, torch.float32)
    shard = logits.chunk(tp, dim=1)[parallel_state.get_tensor_model_parallel_rank()].clone().requires_grad_()
    nll = vocab_parallel_cross_entropy(shard.clone(), labels)
    loss = get_objective("GeneralFamily-8")(-nll)
    (loss * upstream).sum().backward()
    assert shard.grad is not None
    return -nll.detach(), shard.grad


def test_equals_composition_on_megatrons_loss() -> None:
    vocab = 330  # no padding: Megatron's loss has the padding inside its softmax
    ours = run_ranks(2, _values_and_gradients, vocab, torch.float32, "GeneralFamily-8")
    theirs = run_ranks(2, _megatron, vocab)
    for (value, gradient), (their_value, their_gradient) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, their_value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gap", [60.0, -200.0])
def test_extreme_probabilities(gap: float) -> None:
    logits = torch.zeros(1, 8)
    logits[0, 3] = gap
    exact = logits.double().log_softmax(-1)[0, 3].item()
    logits.requires_grad_()
    log_p = token_log_probs(logits, torch.tensor([3]), vocab_size=8, group=None)
    assert log_p.item() == pytest.approx(exact, abs=1e-5)
    log_p.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_nan_logit_is_not_hidden_and_a_second_backward_is_refused() -> None:
    logits = torch.zeros(2, 8)
    logits[0, 5] = torch.nan
    logits.requires_grad_()
    log_p = token_log_probs(logits, torch.tensor([3, 3]), vocab_size=8, group=None)
    assert log_p.isnan().tolist() == [True, False]
    log_p.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        log_p.sum().backward()


class _Recorder(TorchDispatchMode):
    """Sees every collective where all of them pass, torch's dispatcher: (name, elements this rank sends)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.calls.append((func._opname.strip("_"), min(tensor.numel() for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def _head_collectives(sequence_parallel: bool) -> dict[str, list[tuple[str, int]]]:
    tp, sequence, hidden, vocab = 2, 24, 10, 37
    distributed.initialize(tensor_model_parallel_size=tp)
    torch.manual_seed(0)
    states = torch.randn(sequence // tp if sequence_parallel else sequence, 1, hidden, requires_grad=True)
    weight = torch.randn(19, hidden, requires_grad=True)
    rows, labels = torch.tensor([3, 4, 20, 21, 22]), torch.tensor([0, 36, 7, 20, 30])
    with _Recorder() as forward:
        log_p = supervised_log_probs(
            states, weight, rows, labels, vocab_size=vocab, group=distributed.tensor_group(),
            sequence_parallel=sequence_parallel,
        )  # fmt: skip
        loss = get_objective("GeneralFamily-8")(log_p).sum()
    with _Recorder() as backward:
        loss.backward()
    return {"forward": forward.calls, "backward": backward.calls}


def test_only_a_few_floats_per_supervised_token_are_gathered() -> None:
    """T = 5 tokens, h = 10, V = 37: gathered logits would be 185 elements, or 888 of all rows."""
    for calls in run_ranks(2, _head_collectives, False):
        assert calls["forward"] == [("allgather_base", 5 * 3)]
        assert calls["backward"] == [("allreduce", 5 * 10)]


def test_sequence_parallelism_adds_only_its_own_two() -> None:
    for calls in run_ranks(2, _head_collectives, True):
        # this rank's half of the hidden states, then the statistics
        assert calls["forward"] == [("allgather_base", 12 * 10), ("allgather_base", 5 * 3)]
        assert calls["backward"] == [("reduce_scatter_base", 12 * 10)]
