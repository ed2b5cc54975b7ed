"""The objective: log p over the vocabulary, f(p), the logits' gradient; ours against everybody's.

The floor is 6 bytes of memory traffic per bfloat16 logit: read for log p; read and written for the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.kit.loss_case import LogProbs, LossCase
from benchmarks.gpu.kit.place import Place
from benchmarks.gpu.kit.timing import copy_rate, seconds_of
from benchmarks.measure import peak_extra_bytes
from benchmarks.peers import OURS, peers
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.log_probs import token_log_probs

SHAPES = [(8192, 131072), (8192, 151936)]
"""Tokens × vocabulary: the shape of published figures, and Qwen2.5's."""
SMALL = [(64, 1031)]
STATISTICS = ("entropy", "collision", "correct")


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    distributed.initialize()
    return {
        f"{tokens} × {vocab}, {name}": functools.partial(_measure, place, tokens, vocab, log_probs)
        for tokens, vocab in (SMALL if place.small else SHAPES)
        for name, log_probs in _implementations(place, vocab).items()
    }


def _implementations(place: Place, vocab: int) -> dict[str, LogProbs]:
    group = distributed.tensor_group()

    def bound(peer: Callable[..., torch.Tensor]) -> LogProbs:
        return lambda logits, labels: peer(logits, labels, group)

    def with_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_log_probs(logits, labels, vocab_size=vocab, group=group, needs=STATISTICS)[0]

    found = {name: bound(peer) for name, peer in peers(place.device, vocab, with_compiled=False).items()}
    ours = {OURS: found.pop(OURS), f"{OURS}, three statistics too": with_statistics}
    return ours | found


@functools.lru_cache(maxsize=1)  # the card holds one shape at a time
def _case(place: Place, tokens: int, vocab: int) -> tuple[LossCase, float]:
    case = LossCase(tokens, vocab, torch.bfloat16, place.device)
    return case, copy_rate(case.source, case.logits, small=place.small)


def _measure(place: Place, tokens: int, vocab: int, log_probs: LogProbs) -> dict[str, Any]:
    case, rate_of_copy = _case(place, tokens, vocab)
    errors = case.check(log_probs, log_p=1e-3, gradient=0.02)
    state: list[torch.Tensor] = []

    def prepare() -> None:
        state[:] = [case.fresh_logits()]

    def forward() -> None:
        state.append(case.loss(log_probs, state[0])[0])

    def backward() -> None:
        torch.autograd.grad(state.pop(), state[0])

    seconds_forward, seconds = seconds_of([forward, backward], prepare, small=place.small)
    prepare()
    extra = peak_extra_bytes(lambda: (forward(), backward())) / case.source.numel()
    rate = 3 * case.source.numel() * case.source.element_size() / seconds
    return {
        "tokens": tokens, "vocab": vocab, "seconds_forward": seconds_forward, "seconds_total": seconds,
        "gigabytes_per_second": rate / 1e9, "copy_gigabytes_per_second": rate_of_copy / 1e9,
        "share_of_copy": rate / rate_of_copy, "extra_bytes_per_logit": extra,
        "error_log_p": errors.log_p, "error_gradient": errors.gradient,
        "result": f"{seconds * 1e3:7.2f} ms (forward {seconds_forward * 1e3:.2f}), {rate / 1e9:.0f} GB/s = "
        f"{rate / rate_of_copy:.0%} of a copy's {rate_of_copy / 1e9:.0f}, {extra:.2f} B/logit extra, "
        f"gradient within {errors.gradient:.1e}",
    }  # fmt: skip
