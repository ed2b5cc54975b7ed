"""The denominators of a step's loss. One is right; the others reproduce trainers that do otherwise.

- tokens: Σ f over the global batch's supervised tokens ÷ their number, on any layout. In weighted data
  Σ w·f ÷ Σ w: the weights of a step are scaled so that their sum is that number.
- kept-tokens: ÷ the number of tokens that the objective keeps (`Objective.kept`): thresholds leave some out.
- microbatch-mean: the mean over micro-batches (of all ranks) of each one's own mean.
- microbatch-sum: on each rank the sum over its micro-batches of their means, then the mean over ranks: what
  the public code of arXiv 2510.00526 takes the gradient of, which so grows with the number of micro-batches.

A micro-batch's own mean is over the tokens that the objective keeps, as in that code; where none is kept it
is 0, and counts like the others. That code logs the mean over micro-batches though it minimises their sum;
here the log has what is minimised.

The last two depend on what lies in a micro-batch: with --no-packing that is --micro-batch-size samples.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.runtime.distributed import context_group
from megatron_probsft.training.batches import MicroBatch
from megatron_probsft.training.config.objective import Denominator
from megatron_probsft.vocab_parallel.head_parts import Tokens, TokenWeights


def token_weights(
    denominator: Denominator, micro_batch: MicroBatch, objective: Objective, vocab_size: int
) -> TokenWeights:
    """Return what the micro-batch's losses are multiplied by before they are summed; None for 1."""
    if denominator in ("tokens", "kept-tokens"):  # weighted data go with the first only
        return micro_batch.weights

    def each(kept: torch.Tensor) -> torch.Tensor:
        return (1 / kept.clamp(min=1)).expand(micro_batch.labels.shape)

    if objective.keeps is None:
        return each(_count(micro_batch.supervised_tokens, micro_batch.labels.device))

    def of_kept(tokens: Tokens) -> torch.Tensor:
        number = _kept(tokens, objective, vocab_size)
        # The ranks of a context-parallel group share the micro-batch.
        dist.all_reduce(number, group=context_group())
        return each(number)

    return of_kept


def count(
    denominator: Denominator,
    micro_batch: MicroBatch,
    tokens: Tokens,
    objective: Objective,
    vocab_size: int,
    *,
    is_first: bool,
) -> torch.Tensor:
    """Return what this rank's micro-batch adds to the number that Megatron-Core divides by, an int scalar.

    is_first: whether it is the rank's first micro-batch of the step that has supervised tokens.
    """
    if denominator == "tokens":
        return _count(len(tokens.losses), tokens.losses.device)
    if denominator == "kept-tokens":
        return _kept(tokens, objective, vocab_size)
    # Once per micro-batch, not per part of it: the ranks of a context-parallel group share one.
    one = parallel_state.get_context_parallel_rank() == 0 and micro_batch.supervised_tokens > 0
    counts = one and (is_first or denominator == "microbatch-mean")
    return _count(int(counts), tokens.losses.device)


def _count(number: int, device: torch.device) -> torch.Tensor:
    """Return it as a scalar that is made there; torch.tensor would wait for its copy to the device."""
    return torch.full((), number, dtype=torch.int, device=device)


def _kept(tokens: Tokens, objective: Objective, vocab_size: int) -> torch.Tensor:
    return objective.kept(tokens.log_p, **tokens.statistics, vocab_size=vocab_size).sum().int()
