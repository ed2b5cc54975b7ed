"""The output head and the objective in one: gradients are made chunk by chunk in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.vocab_parallel.shards import PendingSoftmax, Shard, write_gradient

_CPU_ROWS = 512


@dataclass(frozen=True)
class Tokens:
    """What the objective made of the supervised tokens, `[T]` float32 each, without gradient."""

    losses: torch.Tensor
    log_p: torch.Tensor
    statistics: dict[str, torch.Tensor]


TokenWeights = torch.Tensor | Callable[[Tokens], torch.Tensor] | None
"""What losses are multiplied by: `[T]` float32, or what makes that of the tokens' unweighted values."""


def fused_head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    *,
    shard: Shard,
    token_weights: TokenWeights,
    chunk_tokens: int,
    grad_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, Tokens]:
    """Σ token_weight · f(log p) of the labels, never holding more than one chunk of logits.

    Per chunk: logits (GEMM 1), log p, f and f′, the logits' gradient in their own memory, the weight's
    gradient (GEMM 2) and the hidden states' (GEMM 3). Over several shards a chunk is two halves, so that one
    half's collective runs during the other's GEMM. Where no gradient is wanted only GEMM 1 runs.

    Args:
        hidden: `[T, h]` in the model's dtype. **Overwritten by its gradient**, this shard's part of it.
        weight: `[V_local, h]`. Its gradient is added to `weight.main_grad` (Megatron's DDP) in this forward
            pass, so a backward pass must follow.
        labels: `[T]` int64, none of them −100.
        token_weights: `[T]` float32 that multiply the losses, or None. A function is given the tokens first,
            which takes GEMM 1 and the collectives once more.
        chunk_tokens: rows of logits held at a time.
        grad_scale: the upstream gradient that backward will bring (a loss scale).

    Returns:
        (the sum, a float32 scalar, the same on every rank; per-token values).

    Raises:
        ValueError: a trainable weight without main_grad.
        RuntimeError: backward ran twice, or with another gradient than grad_scale.

    Collectives on the group, per half chunk: one all-gather of `[·, 3 + needs]` float32; backward none.
    """
    if callable(token_weights):
        with torch.no_grad():
            _, unweighted = fused_head_loss(
                hidden, weight, labels, objective, shard=shard, token_weights=None, chunk_tokens=chunk_tokens
            )
        token_weights = token_weights(unweighted)
    gradients = torch.is_grad_enabled()
    if gradients and weight.requires_grad and not hasattr(weight, "main_grad"):
        raise ValueError("the fused head adds to weight.main_grad: wrap the model in Megatron's DDP first")
    scale = torch.as_tensor(grad_scale, dtype=torch.float32, device=hidden.device).reshape(())
    total, losses, log_p, *statistics = _FusedHead.apply(  # type: ignore[misc]
        hidden, weight, labels, token_weights, objective, shard, chunk_tokens, scale, gradients
    )
    needs = per_token_needs(objective)
    return total, Tokens(losses, log_p, dict(zip(needs, statistics, strict=True)))


def per_token_needs(objective: Objective) -> list[str]:
    """What the objective needs of the kernels (the vocabulary's size is known without them)."""
    return [name for name in objective.needs if name != "vocab_size"]


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        token_weights: torch.Tensor | None,
        objective: Objective,
        shard: Shard,
        chunk_tokens: int,
        scale: torch.Tensor,
        gradients: bool,
    ) -> tuple[torch.Tensor, ...]:
        hidden, weight_value = hidden.detach(), weight.detach()
        wants_hidden, wants_weight = (gradients and wanted for wanted in ctx.needs_input_grad[:2])
        needs = per_token_needs(objective)
        lanes = 1 if shard.ranks == 1 else 2
        size = max(1, min(chunk_tokens // lanes, len(labels)))
        pieces = [slice(i, i + size) for i in range(0, len(labels), size)]
        memory = [hidden.new_empty(size, weight.shape[0]) for _ in pieces[:lanes]]
        results = [hidden.new_empty(2 + len(needs), 0, dtype=torch.float32)]

        def start(index: int, rows: slice) -> tuple[slice, torch.Tensor, PendingSoftmax]:
            logits = memory[index % lanes][: len(labels[rows])]
            torch.mm(hidden[rows], weight_value.t(), out=logits)
            return rows, logits, PendingSoftmax(logits, labels[rows], shard, needs)

        def finish(rows: slice, logits: torch.Tensor, pending: PendingSoftmax) -> None:
            softmax = pending.wait()
            log_p = softmax.log_p.requires_grad_()
            with torch.enable_grad():
                losses = objective(log_p, **softmax.statistics, vocab_size=shard.vocab_size)
                if token_weights is not None:
                    losses = losses * token_weights[rows]
            statistics = (softmax.statistics[name].float() for name in needs)
            results.append(torch.stack([losses.detach(), log_p.detach(), *statistics]))
            if not (wants_hidden or wants_weight):
                return
            (grad_log_p,) = torch.autograd.grad(losses, log_p, scale.expand_as(losses))
            write_gradient(logits, softmax, shard, grad_log_p)
            if wants_weight:
                _add_product(weight.main_grad, logits, hidden[rows])  # type: ignore[arg-type]
            if wants_hidden:
                torch.mm(logits, weight_value, out=hidden[rows])

        waiting: list[tuple[slice, torch.Tensor, PendingSoftmax]] = []
        for index, rows in enumerate(pieces):
            waiting.append(start(index, rows))
            if len(waiting) == lanes:
                finish(*waiting.pop(0))
        for piece in waiting:
            finish(*piece)

        losses, *rest = torch.cat(results, dim=1).unbind()
        ctx.save_for_backward(scale)
        ctx.grad_hidden = hidden if wants_hidden else None
        ctx.weight = (weight.shape, weight.dtype, weight.device) if wants_weight else None
        ctx.consumed = False
        ctx.mark_non_differentiable(losses, *rest)
        return losses.sum(), losses, *rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.consumed:
            raise RuntimeError("fused_head_loss: backward ran twice, but its gradients were made in forward")
        ctx.consumed = True
        (scale,) = ctx.saved_tensors
        torch.ops.aten._assert_async.msg(grad_total == scale, "fused_head_loss: upstream is not grad_scale")
        grad_weight = None
        if ctx.weight is not None:
            # main_grad has it already. Autograd still wants a gradient, so that DDP's hooks fire and a tied
            # embedding's own part adds up: an empty sparse tensor is a zero that takes no memory.
            shape, dtype, device = ctx.weight
            grad_weight = torch.sparse_coo_tensor(
                torch.empty(2, 0, dtype=torch.int64, device=device),
                torch.empty(0, dtype=dtype, device=device),
                shape,
                check_invariants=False,
            )
        return ctx.grad_hidden, grad_weight, *[None] * 7


def _add_product(main_grad: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """main_grad `[V_local, h]` += grad_logitsᵀ `[V_local, T]` · hidden `[T, h]`."""
    left = grad_logits.t()
    if main_grad.dtype == left.dtype:
        main_grad.addmm_(left, hidden)
    elif left.is_cuda:
        torch.addmm(main_grad, left, hidden, out_dtype=main_grad.dtype, out=main_grad)
    else:  # torch has no mixed-precision GEMM on CPU: a block of rows at a time, rounded once per chunk
        for start in range(0, len(main_grad), _CPU_ROWS):
            rows = slice(start, start + _CPU_ROWS)
            main_grad[rows].add_(left[rows] @ hidden)
