"""The loss engine and the head with every kernel, against float64; `correctness` runs these first."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.kit.loss_case import LossCase
from benchmarks.gpu.kit.place import Place, WrongError
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, LossPath, OutputHead, Supervision
from megatron_probsft.vocab_parallel.log_probs import token_log_probs
from megatron_probsft.vocab_parallel.shards import Kernels

STATISTICS = ("entropy", "collision", "correct")
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 5e-3)}
"""Of log p, and of the gradient, which is rounded once to the logits' type."""


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    every: list[Kernels] = ["torch"] if place.small else ["triton", "torch"]
    for kernels in every:
        for dtype in TOLERANCES:
            name = f"{kernels}, {str(dtype).removeprefix('torch.')}"
            found[f"log p and gradient, {name}"] = functools.partial(_log_probs, place, kernels, dtype)
        for path in ("fused", "materialized"):
            found[f"head, {path}, {kernels}, float32"] = functools.partial(_head, place, kernels, path)
    return found


def _log_probs(place: Place, kernels: Kernels, dtype: torch.dtype) -> dict[str, Any]:
    """Any number of columns, padding after them, all statistics; more blocks than one; labels left out."""
    errors = []
    for tokens, vocab in [(33, 1031)] if place.small else [(700, 1031), (700, 50_257), (300, 151_643)]:
        case = LossCase(tokens, vocab, dtype, place.device, padding=-vocab % 128)

        def log_probs(logits: torch.Tensor, labels: torch.Tensor, vocab: int = vocab) -> torch.Tensor:
            return token_log_probs(
                logits, labels, vocab_size=vocab, group=None, needs=STATISTICS, kernels=kernels
            )[0]

        log_p, gradient = TOLERANCES[dtype]
        errors.append(case.check(log_probs, log_p=log_p, gradient=gradient))
        _check_statistics(case, kernels)
    log_p, gradient = max(one.log_p for one in errors), max(one.gradient for one in errors)
    return {
        "error_log_p": log_p, "error_gradient": gradient,
        "result": f"log p within {log_p:.1e}, gradient within {gradient:.1e}, statistics too",
    }  # fmt: skip


def _check_statistics(case: LossCase, kernels: Kernels) -> None:
    labels = case.labels.clone()
    labels[1::5] = -100
    log_p, found = token_log_probs(
        case.fresh_logits(), labels, vocab_size=case.vocab, group=None, needs=STATISTICS, kernels=kernels
    )
    if log_p[1::5].any():
        raise WrongError("log p of a row to leave out is not 0")
    kept = labels >= 0
    exact = case.source[kept, : case.vocab].double().log_softmax(-1)
    expected = {"entropy": -(exact.exp() * exact).sum(-1), "collision": exact.exp().square().sum(-1)}
    for name, values in expected.items():
        error = (found[name][kept] - values).abs().max().item()
        if not error <= 1e-4:
            raise WrongError(f"{name} differs by {error:.1e}")
    if not torch.equal(found["correct"][kept].bool(), exact.argmax(-1) == labels[kept]):
        raise WrongError("correct is not whether the label is the first maximum")


def _head(place: Place, kernels: Kernels, path: LossPath) -> dict[str, Any]:
    """Tokens of unequal weight, some of them supervised, chunks that do not divide them."""
    tokens, hidden, vocab, chunk = (24, 16, 131, 7) if place.small else (512, 256, 32_001, 100)
    generator = torch.Generator(place.device).manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=place.device, generator=generator)

    states = normal(tokens, 1, hidden).requires_grad_()
    weight = (normal(vocab, hidden) * 2 / hidden**0.5).requires_grad_()
    weight.main_grad = torch.zeros_like(weight)  # type: ignore[attr-defined]
    chosen = torch.arange(0, tokens, 3, device=place.device)
    labels = torch.randint(0, vocab, (len(chosen),), device=place.device, generator=generator)
    weights = torch.rand(len(chosen), device=place.device, generator=generator)
    with _exact_products():
        total, _ = supervised_loss(
            states, OutputHead(weight, vocab, None), Supervision(chosen, labels, weights),
            get_objective("p"), options=HeadOptions(path, chunk, kernels),
        )  # fmt: skip
        total.backward()
    exact_states, exact_weight = (one.detach().double().requires_grad_() for one in (states, weight))
    log_p = (exact_states[chosen, 0] @ exact_weight.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    exact = ((1 - log_p.exp()) * weights).sum()
    exact.backward()
    assert weight.grad is not None
    of_weight = weight.main_grad + weight.grad  # type: ignore[attr-defined]  # as DDP adds it; maybe sparse
    pairs = {
        "loss": (total.detach(), exact.detach()),
        "hidden": (states.grad, exact_states.grad),
        "weight": (of_weight, exact_weight.grad),
    }
    errors = {}
    for name, (found, expected) in pairs.items():
        assert found is not None
        assert expected is not None
        errors[name] = ((found - expected).norm() / expected.norm()).item()
        if not errors[name] <= 1e-4:
            raise WrongError(f"{name} differs by {errors[name]:.1e} (relative)")
    return {"errors": errors, "result": ", ".join(f"{name} within {e:.1e}" for name, e in errors.items())}


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32: an image may have set TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
