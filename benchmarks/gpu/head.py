"""The head: hidden states → NLL of the supervised tokens → both gradients; bare GEMMs, ours, others'.

Ours adds the weight's gradient to Megatron's float32 main_grad, which a trainer needs; the others leave it in
bfloat16, and adding it is not counted. Where 20 % are supervised ours is given those rows alone, as the
trainer does it; the others are given all rows and labels of −100.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.kit.head_peers import PEERS, Head
from benchmarks.gpu.kit.place import Place, WrongError
from benchmarks.gpu.kit.timing import seconds_of
from benchmarks.measure import peak_extra_bytes
from benchmarks.peers import OURS
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision

SHAPES = [(8192, 4096, 128256), (8192, 3584, 152064)]
"""Tokens × hidden × vocabulary: Llama-3.1-8B's and Qwen2.5-7B's."""
SMALL = [(64, 64, 1032)]
SHARES = (1.0, 0.2)
OPTIONS = {
    f"{OURS}, chunks of 8192": HeadOptions("fused", chunk_tokens=8192),
    f"{OURS}, chunks of 4096": HeadOptions("fused", chunk_tokens=4096),
    f"{OURS}, materialized": HeadOptions("materialized"),
}
CHECKED = 64
"""Rows of the hidden states' gradient, and of the weight's, that are compared with float64."""


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    distributed.initialize()
    found = {}
    for tokens, hidden, vocab in SMALL if place.small else SHAPES:
        for share in SHARES:
            shape = (tokens, hidden, vocab, share)
            for name in ["three_gemms", *OPTIONS, *PEERS]:
                title = f"{tokens} × {hidden} × {vocab}, {share:.0%}, {name}"
                found[title] = functools.partial(_measure, place, shape, name)
    return found


class _Case:
    """Hidden states, a weight with main_grad, labels; and the gradients in float64, of some rows."""

    def __init__(self, device: str, tokens: int, hidden: int, vocab: int, share: float) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, generator=generator)

        self.vocab = vocab
        self.hidden = normal(tokens, hidden).bfloat16().requires_grad_()
        self.weight = (normal(vocab, hidden) / hidden**0.5).bfloat16().requires_grad_()
        self.weight.main_grad = torch.zeros(vocab, hidden, device=device)  # type: ignore[attr-defined]
        self.labels = torch.randint(0, vocab, (tokens,), device=device, generator=generator)
        kept = torch.randperm(tokens, device=device, generator=generator)[: round(share * tokens)]
        self.kept = kept.sort().values
        self.masked = torch.full_like(self.labels, -100)
        self.masked[self.kept] = self.labels[self.kept]
        # Rows to compare: supervised ones, and the weight's rows of their labels, which have large gradients.
        self.checked = self.kept[:CHECKED]
        self.columns = self.labels[self.checked].unique()
        self._exact()

    def _exact(self) -> None:
        loss = torch.zeros((), dtype=torch.float64, device=self.hidden.device)
        weight = self.weight.detach().double()
        self.exact_weight = torch.zeros(
            len(self.columns), weight.shape[1], dtype=torch.float64, device=weight.device
        )
        for rows in self.kept.split(1024):
            states = self.hidden.detach()[rows].double()
            log_softmax = (states @ weight.t()).log_softmax(-1)
            chosen = self.labels[rows, None]
            loss -= log_softmax.gather(1, chosen).sum()
            gradient = log_softmax.exp_().scatter_add_(
                1, chosen, -torch.ones_like(chosen, dtype=torch.float64)
            )
            self.exact_weight += gradient[:, self.columns].t() @ states
            if rows[0] == self.kept[0]:
                self.exact_hidden = gradient[:CHECKED] @ weight
        self.exact_loss = loss.item()

    def ours(self, options: HeadOptions) -> torch.Tensor:
        supervision = Supervision(self.kept, self.labels[self.kept])
        head = OutputHead(self.weight, self.vocab, distributed.tensor_group())
        return supervised_loss(self.hidden[:, None], head, supervision, _NLL, options=options)[0]

    def peer(self, peer: Head) -> torch.Tensor:
        return peer(self.hidden, self.weight, self.masked)

    def three_gemms(self) -> None:
        """What no head can do without: logits, the hidden states' gradient, the weight's."""
        with torch.no_grad():
            states = self.hidden.index_select(0, self.kept)
            logits = states @ self.weight.t()
            logits @ self.weight
            logits.t() @ states

    def forget(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def check(self, loss: Callable[[], torch.Tensor]) -> float:
        """Return the larger relative error of the two gradients (Frobenius norm).

        Raises:
            WrongError: the loss or a gradient is not what float64 gives, as far as bfloat16 logits can be.
        """
        main_grad: torch.Tensor = self.weight.main_grad  # type: ignore[attr-defined]
        main_grad.zero_()
        self.forget()
        total = loss()
        total.backward()
        assert self.hidden.grad is not None
        assert self.weight.grad is not None
        weight = main_grad[self.columns].double()  # ours is in there; the rest of it stays zero
        if not self.weight.grad.is_sparse:
            weight += self.weight.grad[self.columns].double()
        pairs = ((self.hidden.grad[self.checked].double(), self.exact_hidden), (weight, self.exact_weight))
        error = max(((found - exact).norm() / exact.norm()).item() for found, exact in pairs)
        of_loss = abs(total.item() / self.exact_loss - 1)
        self.forget()
        # Some return the loss in bfloat16, which has 8 bits.
        if not (error <= 0.02 and of_loss <= (1e-3 if total.dtype == torch.float32 else 1e-2)):
            raise WrongError(f"the loss differs by {of_loss:.1e}, a gradient by {error:.1e} (relative)")
        return error


_NLL = get_objective("original")


@functools.lru_cache(maxsize=1)  # the card holds one shape at a time
def _case(place: Place, shape: tuple[int, int, int, float]) -> tuple[_Case, float]:
    case = _Case(place.device, *shape)
    (seconds,) = seconds_of([case.three_gemms], lambda: None, small=place.small)
    return case, seconds


def _measure(place: Place, shape: tuple[int, int, int, float], name: str) -> dict[str, Any]:
    case, gemms = _case(place, shape)
    tokens, hidden, vocab, share = shape
    record = {"tokens": tokens, "hidden": hidden, "vocab": vocab, "supervised": share, "seconds_gemms": gemms}
    if name == "three_gemms":
        rate = 3 * 2 * len(case.kept) * hidden * vocab / gemms / 1e12
        return record | {"seconds_total": gemms, "result": f"{gemms * 1e3:7.2f} ms, {rate:.0f} TFLOP/s"}
    loss = (lambda: case.ours(OPTIONS[name])) if name in OPTIONS else (lambda: case.peer(PEERS[name]))
    error = case.check(loss)

    def work() -> None:
        loss().backward()

    (seconds,) = seconds_of([work], case.forget, small=place.small, repeats=5)
    case.forget()
    extra = peak_extra_bytes(work)
    case.forget()
    return record | {
        "seconds_total": seconds, "ratio_to_gemms": seconds / gemms, "extra_peak_bytes": extra,
        "error": error,
        "result": f"{seconds * 1e3:7.2f} ms = {seconds / gemms:.2f} × the GEMMs of its rows, "
        f"{extra / 2**30:.2f} GiB extra, gradients within {error:.1e}",
    }  # fmt: skip
