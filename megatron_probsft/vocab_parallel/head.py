"""The output head on supervised rows only: hidden states and a vocabulary shard in, log p out."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel

from megatron_probsft.vocab_parallel.log_probs import token_log_probs


def supervised_log_probs(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    sequence_parallel: bool,
) -> torch.Tensor:
    """log p of the labels at `rows`; the other rows cost no head computation and no logits memory.

    Args:
        hidden_states: `[s, b, h]`, or `[s/tp, b, h]` under sequence parallelism, in the model's dtype.
        weight: `[V_local, h]`, this rank's shard of the output (or tied embedding) matrix.
        rows: `[T]` int64, the supervised positions in the flattened `[s × b]`.
        labels: `[T]` int64, their labels in the whole vocabulary.
        vocab_size: columns from there on are padding, outside the softmax.
        group: the tensor-parallel group.
        sequence_parallel: whether hidden_states are cut along the sequence.

    Returns:
        `[T]` float32, the same on every rank of the group.

    Collectives on `group`: forward one all-gather of `[T, 3]` float32; backward one all-reduce of the
    selected rows' gradient `[T, h]`. Sequence parallelism has instead its own all-gather of the hidden
    states and reduce-scatter of their gradient. Logits `[T, V_local]` stay on their rank.
    """
    if sequence_parallel:
        # Its backward is the reduce-scatter that also sums the shards' parts of the gradient.
        hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, group=group)
        selected = hidden_states.flatten(0, 1).index_select(0, rows)
    else:
        selected = hidden_states.flatten(0, 1).index_select(0, rows)
        selected = tensor_parallel.copy_to_tensor_model_parallel_region(selected, group=group)
    logits = F.linear(selected, weight)
    return token_log_probs(logits, labels, vocab_size=vocab_size, group=group)
