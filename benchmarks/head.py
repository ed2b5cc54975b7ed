"""How fast is the output head with its objective, and how much memory does it take?

    python benchmarks/head.py --json FILE
    python benchmarks/head.py --tp 1 2 --tokens 2048 8192 --supervised 0.1 0.5 1 --loss-chunk-tokens 256 1024

From hidden states to their gradient and the weight's in Megatron's main_grad. Starts its own ranks; every
list is swept. On CPU each rank has one thread. `three_gemms` is what no head can do without.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import (
    DTYPES,
    hardware,
    interleaved_medians,
    peak_extra_bytes,
    show,
    timed,
    write_json,
)
from benchmarks.peers import OURS, peers
from benchmarks.ranks import run_ranks
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision

COLUMNS = {
    "implementation": "{implementation}",
    "dtype": "{dtype}",
    "tokens × hidden × vocab": "{tokens} × {hidden} × {vocab}",
    "TP": "{tp}",
    "supervised": "{supervised:.0%}",
    "seconds": "{seconds_total:.4f}",
    "÷ all tokens": "{ratio_to_all_tokens:.3f}",
    "÷ materialized": "{ratio_to_materialized:.3f}",
    "÷ three GEMMs": "{ratio_to_three_gemms:.3f}",
    "extra MiB": "{extra_peak_mebibytes:.1f}",
    "÷ chunk": "{extra_peak_per_chunk:.2f}",
}


def main() -> None:
    args = _arguments()
    shapes = list(itertools.product(args.dtype, args.tokens, args.hidden, args.vocab))
    records = []
    for tp in args.tp:
        chunks = args.loss_chunk_tokens
        records += run_ranks(tp, _measure_shapes, shapes, args.supervised, chunks, args.repeats)[0]
    show(f"head on {records[0]['hardware']}, torch {records[0]['torch']}", COLUMNS, records)
    write_json(args.json, records)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tp", type=int, nargs="+", default=[2], help="tensor-parallel ranks")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--hidden", type=int, nargs="+", default=[576])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152], help="the whole vocabulary")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bf16"])
    parser.add_argument("--supervised", type=float, nargs="+", default=[0.1, 1.0], help="share of the tokens")
    parser.add_argument("--loss-chunk-tokens", type=int, nargs="+", default=[1024], help="of the fused head")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    if 1.0 not in args.supervised:
        args.supervised.append(1.0)  # what the others are compared with
    return args


def _measure_shapes(
    shapes: list[tuple], shares: list[float], chunks: list[int], repeats: int
) -> list[dict[str, Any]]:
    distributed.initialize(tensor_model_parallel_size=distributed.world_size())
    return [record for shape in shapes for record in _Case(*shape).measure(shares, chunks, repeats)]


class _Case:
    """One dtype and shape: hidden states, a weight shard with main_grad, the ways from one to the other."""

    def __init__(self, dtype: str, tokens: int, hidden: int, vocab: int) -> None:
        self.group, tp = distributed.tensor_group(), distributed.world_size()
        self.shape = {"dtype": dtype, "tokens": tokens, "hidden": hidden, "vocab": vocab, "tp": tp}
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        torch.manual_seed(1)
        self.hidden = torch.randn(tokens, 1, hidden, device=device).to(DTYPES[dtype]).requires_grad_()
        self.labels = torch.randint(0, vocab, (tokens,), device=device)
        self.order = torch.randperm(tokens, device=device)
        torch.manual_seed(distributed.rank())
        weight = torch.randn(vocab // tp, hidden, device=device) / hidden**0.5
        self.weight = weight.to(DTYPES[dtype]).requires_grad_()
        self.main_grad = torch.zeros(self.weight.shape, device=device)
        self.weight.main_grad = self.main_grad  # type: ignore[attr-defined]
        self.objective = get_objective("p")
        losses = peers(device, vocab, with_compiled=False)
        self.peers = {name: loss for name, loss in losses.items() if not name.startswith(OURS)}

    def ours(self, options: HeadOptions, share: float) -> None:
        rows = self.order[: round(share * len(self.order))].sort().values
        total, _ = supervised_loss(
            self.hidden,
            OutputHead(self.weight, self.shape["vocab"], self.group),
            Supervision(rows, self.labels[rows]),
            self.objective,
            options=options,
        )
        self._backward(total)

    def peer(self, name: str) -> None:
        """All tokens through the head, as trainers without selection do."""
        states = copy_to_tensor_model_parallel_region(self.hidden[:, 0], group=self.group)
        log_p = self.peers[name](F.linear(states, self.weight), self.labels, self.group)
        self._backward(self.objective(log_p).sum())

    def three_gemms(self) -> None:
        """Logits, the hidden states' gradient, the weight's; each into new memory."""
        with torch.no_grad():
            logits = self.hidden[:, 0] @ self.weight.t()
            logits @ self.weight
            logits.t() @ self.hidden[:, 0]

    def _backward(self, total: torch.Tensor) -> None:
        total.backward()
        # What Megatron's DDP does when a gradient is ready.
        assert self.weight.grad is not None
        self.main_grad.add_(self.weight.grad)
        self.weight.grad = None
        self.hidden.grad = None

    def measure(self, shares: list[float], chunks: list[int], repeats: int) -> Iterator[dict[str, Any]]:
        # (implementation, share, chunk) → the work
        works: dict[tuple[str, float, int | None], Any] = {("three_gemms", 1.0, None): self.three_gemms}
        for name in self.peers:
            works[name, 1.0, None] = lambda name=name: self.peer(name)
        for share in shares:
            plain = HeadOptions("materialized")
            works["materialized", share, None] = lambda share=share, plain=plain: self.ours(plain, share)
            for chunk in chunks:
                fused = HeadOptions("fused", chunk_tokens=chunk)
                works["fused", share, chunk] = lambda share=share, fused=fused: self.ours(fused, share)
        runs = {key: lambda work=work: {"total": timed(work)} for key, work in works.items()}
        seconds = {key: parts["total"] for key, parts in interleaved_medians(runs, repeats).items()}
        states = self.hidden.numel() * self.hidden.element_size()
        for (name, share, chunk), work in works.items():
            # Beyond parameters and gradients: the hidden states' gradient is made anew in every call.
            extra = max(0, peak_extra_bytes(work) - states)
            # Without chunks: all the logits.
            held = chunk or round(share * len(self.labels))
            chunk_bytes = held * len(self.weight) * self.weight.element_size()
            this = seconds[name, share, chunk]
            yield {
                "implementation": name,
                **self.shape,
                "supervised": share,
                "loss_chunk_tokens": chunk,
                "seconds_total": this,
                "ratio_to_all_tokens": this / seconds["materialized", 1.0, None],
                "ratio_to_materialized": this / seconds["materialized", share, None],
                "ratio_to_three_gemms": this / seconds["three_gemms", 1.0, None],
                "extra_peak_bytes": extra,
                "extra_peak_mebibytes": extra / 2**20,
                "chunk_bytes": chunk_bytes,
                "extra_peak_per_chunk": extra / chunk_bytes,
                **hardware(),
            }


if __name__ == "__main__":
    main()
