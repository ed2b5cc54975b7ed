"""What the step's loss is divided by. One is right; the others reproduce trainers that do otherwise.

- tokens: Σ f over the global batch's supervised tokens ÷ their number, on any layout. In weighted data
  Σ w·f ÷ Σ w: the weights of a step are scaled so that their sum is that number.
- kept-tokens: ÷ the number of tokens that the objective gives a gradient (thresholds leave some out).
- microbatch-mean: the mean over micro-batches (of all ranks) of each one's own mean.
- microbatch-sum: on each rank the sum over its micro-batches of their means, then the mean over ranks: what
  the public code of arXiv 2510.00526 does, whose gradients grow with the number of micro-batches.

The last two depend on what lies in a micro-batch: with --no-packing that is --micro-batch-size samples.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state

from megatron_probsft.objectives.registry import Objective, gradient_weight
from megatron_probsft.training.batches import MicroBatch
from megatron_probsft.training.config import Denominator
from megatron_probsft.vocab_parallel.fused_head import Tokens


def token_weights(denominator: Denominator, micro_batch: MicroBatch) -> torch.Tensor | None:
    """`[T]` float32 by which the micro-batch's losses are multiplied before they are summed; None for 1."""
    if denominator in ("tokens", "kept-tokens"):  # weighted data go with the first only
        return micro_batch.weights
    weight = 1 / max(micro_batch.supervised_tokens, 1)
    return torch.full(micro_batch.labels.shape, weight, device=micro_batch.labels.device)


def count(
    denominator: Denominator,
    micro_batch: MicroBatch,
    tokens: Tokens,
    objective: Objective,
    vocab_size: int,
    *,
    is_first: bool,
) -> torch.Tensor:
    """What this rank's micro-batch adds to the number that Megatron-Core divides by, an int scalar.

    is_first: whether it is the rank's first micro-batch of the step.
    """
    number = torch.tensor(len(tokens.losses), dtype=torch.int, device=tokens.losses.device)
    if denominator == "tokens":
        return number
    if denominator == "kept-tokens":
        weight = gradient_weight(objective, tokens.log_p, **tokens.statistics, vocab_size=vocab_size)
        return (weight != 0).sum().int()
    # Once per micro-batch, not per part of it: the ranks of a context-parallel group share one.
    one = parallel_state.get_context_parallel_rank() == 0 and micro_batch.supervised_tokens > 0
    return torch.full_like(number, int(one and (is_first or denominator == "microbatch-mean")))
