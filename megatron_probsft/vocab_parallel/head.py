"""The output head on supervised rows only: hidden states and a vocabulary shard in, the objective out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.vocab_parallel.fused_head import fused_head_loss, per_token_needs
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, LossPath, OutputHead, Supervision, Tokens
from megatron_probsft.vocab_parallel.log_probs import token_log_probs

_DEFAULT = HeadOptions()


def supervised_loss(
    hidden_states: torch.Tensor,
    head: OutputHead,
    supervision: Supervision,
    objective: Objective,
    *,
    options: HeadOptions = _DEFAULT,
    grad_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, Tokens]:
    """Return Σ token_weight · f(log p) of the supervised tokens, and each token's values.

    The other rows cost no head computation and no logits memory.

    Args:
        hidden_states: `[s, b, h]`, or `[s/tp, b, h]` under sequence parallelism, in the model's dtype.
        grad_scale: the upstream gradient that backward will bring; the fused head needs it in forward.

    Returns:
        (the sum, a float32 scalar; per-token values), the same on every rank of the group.

    Collectives on the group: forward one all-gather of `[T, 3 + needs]` float32 (fused: in parts); backward
    one all-reduce of the selected rows' gradient `[T, h]`. Sequence parallelism has instead its own
    all-gather of the hidden states and reduce-scatter of their gradient. Logits stay on their rank.
    """
    if head.sequence_parallel:
        # Its backward is the reduce-scatter that also sums the shards' parts of the gradient.
        hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, group=head.group)
    # index_select copies: the fused head may overwrite what it gets
    selected = hidden_states.flatten(0, 1).index_select(0, supervision.rows)
    if head.group is not None and not head.sequence_parallel:
        selected = tensor_parallel.copy_to_tensor_model_parallel_region(selected, group=head.group)
    if _is_fused(options.path, head.weight):
        return fused_head_loss(selected, head, supervision, objective, options, grad_scale)
    return _materialized_loss(selected, head, supervision, objective, options)


def _materialized_loss(
    hidden: torch.Tensor,
    head: OutputHead,
    supervision: Supervision,
    objective: Objective,
    options: HeadOptions,
) -> tuple[torch.Tensor, Tokens]:
    """Return what `supervised_loss` does, of hidden `[T, h]`, with all logits `[T, V_local]` at once."""
    log_p, statistics = token_log_probs(
        F.linear(hidden, head.weight),
        supervision.labels,
        vocab_size=head.vocab_size,
        group=head.group,
        needs=per_token_needs(objective),
        kernels=options.kernels,
    )
    losses = objective(log_p, **statistics, vocab_size=head.vocab_size)
    values = {name: value.float() for name, value in statistics.items()}
    token_weights = supervision.token_weights
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
