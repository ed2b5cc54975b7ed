"""The output head on supervised rows only: hidden states and a vocabulary shard in, the objective out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.vocab_parallel.fused_head import (
    Tokens,
    TokenWeights,
    fused_head_loss,
    per_token_needs,
)
from megatron_probsft.vocab_parallel.log_probs import token_log_probs
from megatron_probsft.vocab_parallel.shards import Kernels, Shard

LossPath = Literal["auto", "materialized", "fused"]


@dataclass(frozen=True)
class HeadOptions:
    """How the head is computed; its result is the same."""

    path: LossPath = "auto"
    """materialized: all logits of the micro-batch's supervised tokens at once. fused: a chunk at a time.
    auto: fused, unless a trainable weight has no main_grad (Megatron's DDP gives it)."""
    chunk_tokens: int = 4096
    """Rows of logits that the fused head holds."""
    kernels: Kernels = "auto"
    """auto: Triton on CUDA, torch elsewhere."""


_DEFAULT = HeadOptions()


def supervised_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None,
    sequence_parallel: bool,
    token_weights: TokenWeights = None,
    options: HeadOptions = _DEFAULT,
    grad_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, Tokens]:
    """Σ f(log p) of the labels at `rows`; the other rows cost no head computation and no logits memory.

    Args:
        hidden_states: `[s, b, h]`, or `[s/tp, b, h]` under sequence parallelism, in the model's dtype.
        weight: `[V_local, h]`, this rank's shard of the output (or tied embedding) matrix.
        rows: `[T]` int64, the supervised positions in the flattened `[s × b]`.
        labels: `[T]` int64, their labels in the whole vocabulary.
        vocab_size: columns from there on are padding, outside the softmax.
        group: the tensor-parallel group, or None for a single shard.
        sequence_parallel: whether hidden_states are cut along the sequence.
        token_weights: `[T]` float32 that multiply the losses, or None; or a function that makes them of the
            tokens, for which the fused head computes its logits twice.
        grad_scale: the upstream gradient that backward will bring; the fused head needs it in forward.

    Returns:
        (the sum, a float32 scalar; per-token values), the same on every rank of the group.

    Collectives on the group: forward one all-gather of `[T, 3 + needs]` float32 (fused: in parts); backward
    one all-reduce of the selected rows' gradient `[T, h]`. Sequence parallelism has instead its own
    all-gather of the hidden states and reduce-scatter of their gradient. Logits stay on their rank.
    """
    if sequence_parallel:
        # Its backward is the reduce-scatter that also sums the shards' parts of the gradient.
        hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, group=group)
    selected = hidden_states.flatten(0, 1).index_select(0, rows)  # a copy: the fused head may overwrite it
    if group is not None and not sequence_parallel:
        selected = tensor_parallel.copy_to_tensor_model_parallel_region(selected, group=group)
    if _is_fused(options.path, weight):
        return fused_head_loss(
            selected,
            weight,
            labels,
            objective,
            shard=Shard(vocab_size, group, options.kernels),
            token_weights=token_weights,
            chunk_tokens=options.chunk_tokens,
            grad_scale=grad_scale,
        )
    log_p, statistics = token_log_probs(
        F.linear(selected, weight),
        labels,
        vocab_size=vocab_size,
        group=group,
        needs=per_token_needs(objective),
        kernels=options.kernels,
    )
    losses = objective(log_p, **statistics, vocab_size=vocab_size)
    values = {name: value.float() for name, value in statistics.items()}
    if callable(token_weights):
        token_weights = token_weights(Tokens(losses.detach(), log_p.detach(), values))
    if token_weights is not None:
        losses = losses * token_weights
    return losses.sum(), Tokens(losses.detach(), log_p.detach(), values)


def _is_fused(path: LossPath, weight: torch.Tensor) -> bool:
    if path != "auto":
        return path == "fused"
    wants_gradient = weight.requires_grad and torch.is_grad_enabled()
    return hasattr(weight, "main_grad") or not wants_gradient
