"""What kernels read and write, without computing it: for tensors that have no contents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_probsft.runtime.megatron_patches import replace
from megatron_probsft.vocab_parallel import fused_head, torch_kernels


def apply() -> None:
    """Replace, in this process, the kernels that loop over what they find in a tensor."""
    replace(torch_kernels, "shard_statistics", _shard_statistics)
    replace(torch_kernels, "write_gradient", lambda *_: None)
    replace(fused_head, "_add_product", _add_product)


def _shard_statistics(
    logits: torch.Tensor, local_labels: torch.Tensor, columns: int, needs: Sequence[str]
) -> torch.Tensor:
    return logits.new_empty(len(logits), 3 + len(needs), dtype=torch.float32)


def _add_product(main_grad: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    left = grad_logits.t()
    if main_grad.dtype == left.dtype:
        main_grad.addmm_(left, hidden)
    else:  # as on CUDA
        torch.addmm(main_grad, left, hidden, out_dtype=main_grad.dtype, out=main_grad)
