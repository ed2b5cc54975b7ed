"""Stand-ins for kernels allocate and keep what these do, without computing: for tensors without contents.

The place that is simulated is CUDA without Transformer Engine, with liger-kernel: fake tensors lie on the
CPU, so what layers choose for CUDA is chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.transformer.moe import router
from torch._subclasses.fake_tensor import unset_fake_temporarily

from megatron_probsft.models import attention, build, local_layers, rotary
from megatron_probsft.models.packs import Pack
from megatron_probsft.runtime.device import even_length
from megatron_probsft.runtime.megatron_patches import replace, weight_gradient_fusion
from megatron_probsft.training import batches
from megatron_probsft.training.simulate.fake_tensors import known
from megatron_probsft.training.simulate.recorder import note_flops
from megatron_probsft.vocab_parallel import fused_head, torch_kernels

Place = Literal["cuda", "cpu"]


def apply(place: Place) -> None:
    """Replace, in this process, the kernels that look into tensors, and for CUDA those of the layers."""
    replace(torch_kernels, "shard_statistics", _shard_statistics)
    replace(torch_kernels, "write_gradient", lambda *_: None)
    replace(router.TopKRouter, "routing", _evenly(router.TopKRouter.routing))
    if place == "cpu":
        return
    replace(build, "has_gpu", lambda: True)
    replace(build, "use_transformer_engine", lambda: False)
    replace(batches, "even_length", lambda: even_length(gpu=True))
    replace(attention, "flash_attention_for", lambda config: _flash_attention)
    replace(local_layers.RMSNorm, "forward", lambda self, x: _Norm.apply(x, self.weight))
    replace(rotary, "liger_rotate", lambda: _Rotation.apply)
    for module in (fused_head, weight_gradient_fusion):
        replace(module, "add_product", _add_product)
    for name, stand_in in _SWIGLU.items():
        replace(fused_bias_swiglu, name, stand_in)


def _evenly(routing: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable:
    """Return the routing, but every expert is given as many tokens."""

    def balanced(self: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities, chosen = routing(self, *args, **kwargs)
        tokens, experts = chosen.shape
        with unset_fake_temporarily():
            each = torch.arange(tokens * self.topk).view(tokens, self.topk) % experts
            even = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, each, True)
        return probabilities, known(even, chosen.fake_mode)  # type: ignore[attr-defined]

    return balanced


def _shard_statistics(
    logits: torch.Tensor, local_labels: torch.Tensor, columns: int, needs: Sequence[str]
) -> torch.Tensor:
    return logits.new_empty(len(logits), 3 + len(needs), dtype=torch.float32)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float | None
) -> torch.Tensor:
    pairs = 0
    for first, end, start in pack.spans:
        pairs += (end - first) * (first - start) + (end - first) * (end - first + 1) // 2
    return _Attention.apply(query, key, value, pairs)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    """Flash attention: five products of `pairs` queries and keys backward, two forward (arXiv 2205.14135)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pairs: int
    ) -> torch.Tensor:
        rows, heads, size = query.shape
        output = query.new_empty(rows, heads, size)
        ctx.save_for_backward(query, key, value, output, query.new_empty(heads, rows, dtype=torch.float32))
        ctx.product = 2 * pairs * heads * size
        note_flops("attention", 2 * ctx.product)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value, _, row_sums = ctx.saved_tensors
        torch.empty_like(row_sums)  # each row's product of output and gradient
        note_flops("attention", 5 * ctx.product)
        return *(tensor.new_empty(tensor.shape) for tensor in (query, key, value)), None


class _Norm(torch.autograd.Function):
    """RMSNorm in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _Rotation(torch.autograd.Function):
    """Rotary embedding of copies of query and key; gradients are rotated back in place."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        return query.new_empty(query.shape), key.new_empty(key.shape)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return query, key, None, None


def _half(y: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return y.new_empty(*y.shape[:-1], y.shape[-1] // 2)


_SWIGLU: dict[str, Callable] = {
    "swiglu": _half,
    "weighted_swiglu": _half,
    "swiglu_back": lambda _, y: torch.empty_like(y),
    "weighted_swiglu_back": lambda _, y, weights: (torch.empty_like(y), torch.empty_like(weights)),
}
