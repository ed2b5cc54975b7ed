"""log p of the labels by everybody's vocab-parallel loss: `log_p = peer(logits, labels, group)`.

f(p) comes by composition, f(exp(−nll)): any loss that gives per-token NLL and takes a per-token upstream
gradient can be compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)

from megatron_probsft.vocab_parallel.log_probs import token_log_probs
from megatron_probsft.vocab_parallel.shards import Kernels

Peer = Callable[[torch.Tensor, torch.Tensor, dist.ProcessGroup], torch.Tensor]
OURS = "megatron_probsft"
BASELINE = "megatron_unfused"


def peers(device: str, vocab_size: int, with_compiled: bool) -> dict[str, Peer]:
    """Ours first; Liger's and Transformer Engine's on CUDA where they are installed.

    with_compiled: Megatron's fused loss too, which torch.compile builds (minutes on CPU).
    """

    def ours(kernels: Kernels) -> Peer:
        def log_probs(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
            return token_log_probs(logits, labels, vocab_size=vocab_size, group=group, kernels=kernels)[0]

        return log_probs

    found: dict[str, Peer] = {OURS: ours("auto"), BASELINE: _megatron_unfused, "torch": _plain_torch}
    if with_compiled or device == "cuda":
        found["megatron_fused"] = _megatron_fused
    if device == "cuda":
        found[f"{OURS}_torch"] = ours("torch")
        if importlib.util.find_spec("liger_kernel"):
            found["liger_vocab_parallel"] = _liger
        if HAVE_TE:  # Megatron-Core could import it; finding it is not enough
            found["transformer_engine"] = _transformer_engine
    return found


def _megatron_unfused(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return -vocab_parallel_cross_entropy(logits, labels, tp_group=group)


def _megatron_fused(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    return -fused_vocab_parallel_cross_entropy(logits, labels, group)


def _plain_torch(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All logits gathered, then what Hugging Face's trainers do: float32 and cross_entropy."""
    if dist.get_world_size(group) > 1:
        logits = gather_from_tensor_model_parallel_region(logits, group=group)
    return -F.cross_entropy(logits.float(), labels, reduction="none")


def _liger(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    from liger_kernel.megatron import LigerMegatronCrossEntropy  # pyright: ignore[reportMissingImports]

    return -LigerMegatronCrossEntropy()(logits[:, None], labels[:, None], tp_group=group)[:, 0]


def _transformer_engine(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    from transformer_engine.pytorch.cross_entropy import (  # pyright: ignore[reportMissingImports]
        parallel_cross_entropy,
    )

    return -parallel_cross_entropy(logits[:, None], labels[:, None], 0.0, False, group)[:, 0]
