"""The output head and the objective in one: gradients are made chunk by chunk in the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.runtime.products import add_product
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision, Tokens
from megatron_probsft.vocab_parallel.shards import PendingSoftmax, Shard, write_gradient


def fused_head_loss(
    hidden: torch.Tensor,
    head: OutputHead,
    supervision: Supervision,
    objective: Objective,
    options: HeadOptions,
    grad_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, Tokens]:
    """Return Σ token_weight · f(log p) of the labels, never holding more than one chunk of logits.

    Args:
        hidden: `[T, h]`, the supervised rows, in the model's dtype. **Overwritten by its gradient**, this
            shard's part of it.
        head: its weight's gradient is added to `weight.main_grad` (Megatron's DDP) in this forward pass, so a
            backward pass must follow.
        options: `chunk_tokens` rows of logits are held at a time.
        grad_scale: the upstream gradient that backward will bring (a loss scale).

    Returns:
        (the sum, a float32 scalar, the same on every rank; per-token values).

    Raises:
        ValueError: a trainable weight without main_grad.
        RuntimeError: backward ran twice, or with another gradient than grad_scale.

    Collectives on the group: those of `_FusedHead`; twice where `token_weights` is a function.
    """
    token_weights = supervision.token_weights
    if callable(token_weights):
        unweighted = dataclasses.replace(supervision, token_weights=None)
        with torch.no_grad():
            _, tokens = fused_head_loss(hidden, head, unweighted, objective, options)
        token_weights = token_weights(tokens)
    gradients = torch.is_grad_enabled()
    if gradients and head.weight.requires_grad and not hasattr(head.weight, "main_grad"):
        raise ValueError("the fused head adds to weight.main_grad: wrap the model in Megatron's DDP first")
    scale = torch.as_tensor(grad_scale, dtype=torch.float32, device=hidden.device).reshape(())
    total, losses, log_p, *statistics = _FusedHead.apply(  # type: ignore[misc]
        hidden, head.weight, supervision.labels, token_weights, objective, head.shard(options.kernels),
        options.chunk_tokens, scale, gradients,
    )  # fmt: skip
    needs = per_token_needs(objective)
    return total, Tokens(losses, log_p, dict(zip(needs, statistics, strict=True)))


def per_token_needs(objective: Objective) -> list[str]:
    """Return what the objective needs of the kernels, which is all but the vocabulary's size."""
    return [name for name in objective.needs if name != "vocab_size"]


class _FusedHead(torch.autograd.Function):
    """Computes Σ token_weight · f(log p) over chunks of rows, and every gradient already in `forward`.

    Shapes, with T supervised tokens and n statistics that the objective needs:
        hidden `[T, h]`: whole on every rank; overwritten by this shard's part of its gradient, which the
            caller's region (copy or gather, of Megatron) sums over the group in its own backward.
        weight `[V_local, h]`: this rank's rows of the output matrix. `weight.main_grad`, of that shape, is
            added to.
        labels `[T]` int64: ids in the whole vocabulary; token_weights `[T]` float32 or None.
        scale: a float32 scalar, the gradient that backward will bring.
        Returned: total, a float32 scalar; losses and log p `[T]` float32; n statistics `[T]` float32. All
            are the same on every rank, and only total has a gradient.

    Sharding: the vocabulary is cut over the group's ranks (V_local columns of logits each); tokens and h are
    not. Beside its inputs it holds one chunk of logits, `[chunk_tokens, V_local]` in the model's dtype.

    Collectives: forward one all-gather of `[rows, 3 + n]` float32 per chunk (none for one rank); over several
    ranks a chunk is two halves with an all-gather each, which runs during the other half's GEMM. Backward:
    none.
    """

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
        # One lane of logits, or two that take turns: one computes while the other's collective is on its way.
        lanes = 1 if shard.ranks == 1 else 2
        size = max(1, min(chunk_tokens // lanes, len(labels)))
        pieces = [slice(i, i + size) for i in range(0, len(labels), size)]
        memory = [hidden.new_empty(size, weight.shape[0]) for _ in pieces[:lanes]]
        results = [hidden.new_empty(2 + len(needs), 0, dtype=torch.float32)]

        def start(index: int, rows: slice) -> tuple[slice, torch.Tensor, PendingSoftmax]:
            # GEMM 1: the piece's logits [rows, V_local].
            logits = memory[index % lanes][: len(labels[rows])]
            torch.mm(hidden[rows], weight_value.t(), out=logits)
            # First pass over them: this shard's statistics, whose all-gather starts here.
            return rows, logits, PendingSoftmax(logits, labels[rows], shard, needs)

        def finish(rows: slice, logits: torch.Tensor, pending: PendingSoftmax) -> None:
            # All shards' statistics are here: log p, f and its derivative, [rows] values each.
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
            # Second pass: the logits become their gradient, in place.
            write_gradient(logits, softmax, shard, grad_log_p)
            # GEMM 2: the weight's gradient.
            if wants_weight:
                add_product(weight.main_grad, logits.t(), hidden[rows])  # type: ignore[arg-type]
            # GEMM 3: the hidden states' gradient over themselves, which nothing reads any more.
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
        # The gradients are right for the upstream gradient they were made with, and for no other.
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
