"""Everybody's way from hidden states to the supervised tokens' loss: `loss = peer(hidden, weight, labels)`.

hidden `[T, h]`, weight `[V, h]`, labels `[T]` with −100 where a token is not supervised; the gradients come
by autograd, the weight's in its own dtype. Every import is made in the call: a library that is missing or
does not load costs its own row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.gpu.kit.place import NotHereError

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def torch_eager(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All logits, in float32 as Hugging Face's trainers have them."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def torch_chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's own chunked loss, of 2.13 and newer, in its default chunks."""
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None:
        raise NotHereError(f"torch {torch.__version__} has no chunked linear_cross_entropy")
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options())


def liger_triton(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Liger's fused linear cross-entropy, which is NLL only; its weight gradient accumulates in float32."""
    _need("liger_kernel", "liger-kernel", hidden)
    from liger_kernel.transformers.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearCrossEntropyLoss,
    )

    # By keyword: versions have added fields in between.
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return loss(weight, hidden, labels)


def liger_hopper(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Liger's per-token NLL, of 0.8.3 and newer: CuTe kernels on Hopper; any f(p) composes on it."""
    _need("liger_kernel", "liger-kernel", hidden)
    _need("cutlass", "nvidia-cutlass-dsl", hidden)
    if torch.cuda.get_device_capability() != (9, 0):
        raise NotHereError("Liger's own kernels of this loss are for compute capability 9.0 only")
    from liger_kernel.ops import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    return LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, labels).sum()


def liger_tensor_parallel(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Liger's per-token NLL over the tensor-parallel group, here of one rank.

    With NVSHMEM and CUTLASS its own kernels, else its chunked fallback: the machine's row has the versions.
    """
    _need("liger_kernel", "liger-kernel", hidden)
    from liger_kernel.ops import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearScaledCrossEntropyTPFunction,
    )

    from megatron_probsft.runtime.distributed import tensor_group

    return LigerFusedLinearScaledCrossEntropyTPFunction.apply(hidden, weight, labels, tensor_group()).sum()


def quack(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """QuACK's chunked head, NLL only; it takes its fused-backward pipeline where that serves."""
    _need("quack", "quack-kernels", hidden)
    from quack.linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
        chunked_linear_cross_entropy,
    )

    return chunked_linear_cross_entropy(hidden, weight, labels, reduction="sum")


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Apple's cut cross-entropy, with its default filter of small gradients."""
    _need("cut_cross_entropy", "cut-cross-entropy", hidden)
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return linear_cross_entropy(hidden, weight, labels, reduction="sum")


def _need(module: str, package: str, hidden: torch.Tensor) -> None:
    if importlib.util.find_spec(module) is None:
        raise NotHereError(f"{package} is not installed")
    if not hidden.is_cuda:
        raise NotHereError(f"{package}'s kernels are for CUDA")


PEERS: dict[str, Head] = {
    "liger_triton": liger_triton,
    "liger_hopper": liger_hopper,
    "quack": quack,
    "cut_cross_entropy": cut_cross_entropy,
    "torch_chunked": torch_chunked,
    "torch": torch_eager,
    "liger_tensor_parallel": liger_tensor_parallel,
}
