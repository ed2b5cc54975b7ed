"""How fast is the objective? log p over vocabulary shards, f(p), and the logits' gradient, against its peers.

    python benchmarks/objective.py --tp 2 --tokens 2048 --vocab 49152 --dtype bf16 --json FILE
    python benchmarks/objective.py --tp 1 2 --tokens 512 2048 8192 --dtype bf16 fp32 --supervised 0.1 1

Starts its own ranks. Every list is swept. On CPU each rank has one thread.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.collectives import CollectiveRecorder
from benchmarks.measure import (
    DTYPES,
    Run,
    copy_seconds,
    hardware,
    interleaved_medians,
    peak_extra_bytes,
    show,
    timed,
    write_json,
)
from benchmarks.peers import BASELINE, OURS, peers
from benchmarks.ranks import run_ranks
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed

COLUMNS = {
    "implementation": "{implementation}",
    "dtype": "{dtype}",
    "tokens × vocab": "{tokens} × {vocab}",
    "TP": "{tp}",
    "supervised": "{supervised:.0%}",
    "forward s": "{seconds_forward:.4f}",
    "total s": "{seconds_total:.4f}",
    "÷ Megatron": "{ratio_to_megatron_unfused:.2f}",
    "extra B/logit": "{extra_peak_bytes_per_logit:.3f}",
    "collectives": "{collectives_forward} + {collectives_backward}",
    "B/token": "{collective_bytes_per_token:.0f}",
    "GB/s (of copy)": "{gigabytes_per_second:.1f} ({share_of_copy_bandwidth:.0%})",
}


def main() -> None:
    args = _arguments()
    shapes = list(itertools.product(args.dtype, args.tokens, args.vocab, args.supervised))
    records = []
    for tp in args.tp:
        records += run_ranks(tp, _measure_shapes, shapes, args.repeats, args.compiled)[0]
    show(f"objective on {records[0]['hardware']}, torch {records[0]['torch']}", COLUMNS, records)
    write_json(args.json, records)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tp", type=int, nargs="+", default=[2], help="tensor-parallel ranks")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152], help="the whole vocabulary")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bf16"])
    parser.add_argument("--supervised", type=float, nargs="+", default=[1.0], help="share; others are −100")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are reported")
    parser.add_argument("--compiled", action="store_true", help="Megatron's fused loss on CPU too (slow)")
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    for tp, vocab in itertools.product(args.tp, args.vocab):
        if vocab % tp:
            parser.error(f"--vocab {vocab} does not divide by --tp {tp}: Megatron's loss takes no padding")
    return args


def _measure_shapes(shapes: list[tuple], repeats: int, compiled: bool) -> list[dict[str, Any]]:
    distributed.initialize(tensor_model_parallel_size=distributed.world_size())
    return [record for shape in shapes for record in _Case(*shape, compiled=compiled).measure(repeats)]


class _Case:
    """One dtype and shape: the logits, and every peer's way over them."""

    def __init__(self, dtype: str, tokens: int, vocab: int, supervised: float, compiled: bool) -> None:
        self.group = distributed.tensor_group()
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        self.shape = {
            "dtype": dtype, "tokens": tokens, "vocab": vocab, "tp": distributed.world_size(),
            "supervised": supervised,
        }  # fmt: skip
        torch.manual_seed(1)
        self.labels = torch.randint(0, vocab, (tokens,), device=device)
        self.labels[torch.rand(tokens, device=device) >= supervised] = -100
        self.weights = torch.rand(tokens, device=device)
        torch.manual_seed(distributed.rank())
        width = vocab // distributed.world_size()
        self.source = (torch.randn(tokens, width, device=device) * 2).to(DTYPES[dtype])
        self.logits = torch.empty_like(self.source)
        self.objective = get_objective("p")
        self.peers = peers(device, vocab, compiled)

    def fresh_logits(self) -> torch.Tensor:
        """The same memory with the same values: some peers overwrite them, as ours does."""
        return self.logits.copy_(self.source).detach().requires_grad_()

    def loss(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        # Ours leaves rows of −100 out; the others have to compute something there.
        labels = self.labels if name.startswith(OURS) else self.labels.clamp(min=0)
        log_p = self.peers[name](logits, labels, self.group)
        return (torch.where(self.labels >= 0, self.objective(log_p), 0.0) * self.weights).sum()

    def seconds(self, name: str) -> dict[str, float]:
        logits = self.fresh_logits()
        loss: list[torch.Tensor] = []
        forward = timed(lambda: loss.append(self.loss(name, logits)))
        backward = timed(lambda: torch.autograd.grad(loss.pop(), logits))
        return {"forward": forward, "total": forward + backward}

    def gradient(self, name: str) -> torch.Tensor:
        logits = self.fresh_logits()
        return torch.autograd.grad(self.loss(name, logits), logits)[0]

    def check(self) -> None:
        """Every peer must do the same work."""
        expected = self.gradient(BASELINE)[:64].clone().float()  # it may lie in the logits' memory
        for name in self.peers:
            difference = (self.gradient(name)[:64].float() - expected).abs().max()
            if difference > 0.02 * expected.abs().max():
                raise RuntimeError(f"the gradient of {name} differs from {BASELINE}'s by {difference}")

    def measure(self, repeats: int) -> Iterator[dict[str, Any]]:
        self.check()
        runs: dict[str, Run] = {name: lambda name=name: self.seconds(name) for name in self.peers}
        runs["copy"] = lambda: {"total": copy_seconds(self.logits, self.source)}
        medians = interleaved_medians(runs, repeats)
        size = self.source.numel() * self.source.element_size()
        copy_rate = 2 * size / medians["copy"]["total"]
        for name in self.peers:
            logits = self.fresh_logits()
            with CollectiveRecorder() as forward:
                loss = self.loss(name, logits)
            with CollectiveRecorder() as backward:
                torch.autograd.grad(loss, logits)
            del loss, logits
            extra = peak_extra_bytes(lambda name=name: self.gradient(name))
            seconds = medians[name]["total"]
            floor_rate = 3 * size / seconds  # read; read and write
            yield {
                "implementation": name,
                **self.shape,
                "seconds_forward": medians[name]["forward"],
                "seconds_total": seconds,
                "ratio_to_megatron_unfused": seconds / medians[BASELINE]["total"],
                "extra_peak_bytes_per_logit": extra / self.source.numel(),
                "collectives_forward": len(forward.calls),
                "collectives_backward": len(backward.calls),
                "collective_bytes_per_token": (forward.bytes + backward.bytes) / self.shape["tokens"],
                "gigabytes_per_second": floor_rate / 1e9,
                "share_of_copy_bandwidth": floor_rate / copy_rate,
                **hardware(),
            }


if __name__ == "__main__":
    main()
