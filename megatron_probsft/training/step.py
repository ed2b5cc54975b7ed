"""One optimizer step, and one validation pass, through Megatron-Core's schedules."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_probsft.objectives.registry import Objective
from megatron_probsft.runtime.distributed import tensor_group
from megatron_probsft.runtime.megatron_patches.nonfinite_gradients import step_if
from megatron_probsft.training import denominators
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.objective import Denominator
from megatron_probsft.training.micro_batch import MicroBatch
from megatron_probsft.training.state import TrainState
from megatron_probsft.vocab_parallel.head import supervised_loss
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, OutputHead, Supervision, Tokens
from megatron_probsft.vocab_parallel.token_means import (
    ComingMeans,
    TokenMeans,
    combine,
    reduce_sums,
    token_sums,
)


@dataclass(frozen=True)
class Criterion:
    """The function that is minimised over the vocabulary, and how it is computed."""

    objective: Objective
    vocab_size: int
    head: HeadOptions = HeadOptions()
    denominator: Denominator = "tokens"


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step; the same on every rank."""

    means: TokenMeans
    grad_norm: float
    learning_rate: float
    skipped: Literal["loss", "gradient"] | None
    """The number that was not finite, if one: then weights, optimizer and schedule are as they were."""
    seconds: dict[str, float]
    """The wall time of forward_backward and optimizer, as `timing.Phases` takes it."""


def train_step(state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
    """Do one step: forward and backward over its micro-batches, reduce, clip, update, advance the schedule.

    The loss is Σ objective(log p) over the global batch's supervised tokens ÷ their number (or as
    `criterion.denominator` says); Megatron-Core's `finalize_model_grads` divides, once.
    """
    started = time.perf_counter()
    for chunk in state.model:
        chunk.train()
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    coming = _run(state.model, batch, criterion, forward_only=False)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    found: list[tuple[TokenMeans, float]] = []

    def loss_is_finite() -> bool:
        found.append((coming.read(), time.perf_counter()))
        return math.isfinite(found[0][0].loss)

    # The host waits for the device once: for the gradient's norm, with which the loss has come.
    updated, grad_norm = step_if(state.optimizer, loss_is_finite)
    ((means, computed),) = found
    skipped = None
    if updated:
        state.scheduler.step(increment=1)
    else:
        skipped = "gradient" if math.isfinite(means.loss) else "loss"
    state.iteration += 1
    state.consumed_samples += batch.samples
    seconds = {"forward_backward": computed - started, "optimizer": time.perf_counter() - computed}
    return StepResult(means, grad_norm, learning_rate, skipped, seconds)


@torch.no_grad()
def validate(
    model: Sequence[torch.nn.Module],
    batches: Iterator[StepBatch],
    criterion: Criterion,
    observe: Callable[[Tokens], None] | None = None,
) -> TokenMeans:
    """Return token-exact means over all batches: every sample counts once, whatever the layout.

    model: this rank's chunks, in a data-parallel wrapper or not. observe: is given each micro-batch's tokens,
    on every rank of the last pipeline stage.
    """
    criterion = dataclasses.replace(criterion, denominator="tokens")
    for chunk in model:
        chunk.eval()
    results = (_run(model, batch, criterion, forward_only=True, observe=observe) for batch in batches)
    return combine([result.read() for result in results])


def _run(
    model: Sequence[torch.nn.Module],
    batch: StepBatch,
    criterion: Criterion,
    *,
    forward_only: bool,
    observe: Callable[[Tokens], None] | None = None,
) -> ComingMeans:
    micro_batches = [each.on_device() for each in batch.micro_batches]
    first = next((each for each in micro_batches if each.supervised_tokens), None)

    def forward_step(
        coming: Iterator[MicroBatch], chunk: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple]]:
        micro_batch = next(coming)
        head = _Head(micro_batch, criterion, observe, is_first=micro_batch is first)
        output = chunk(
            micro_batch.tokens,
            micro_batch.position_ids,
            None,
            packed_seq_params=micro_batch.pack().attach(_packed(micro_batch)),
            output_processor=head,
        )
        return output, head.report

    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        # Every chunk of an interleaved pipeline goes through all micro-batches.
        data_iterator=[iter(micro_batches) for _ in model],
        model=[*model],
        num_microbatches=len(micro_batches),
        seq_length=batch.pack_length,
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return reduce_sums(
        [report["sums"] for report in reports], with_entropy="entropy" in criterion.objective.needs
    )


class _Head:
    """Takes a micro-batch from the last stage's hidden states to what Megatron-Core's schedule wants."""

    def __init__(
        self,
        micro_batch: MicroBatch,
        criterion: Criterion,
        observe: Callable[[Tokens], None] | None,
        *,
        is_first: bool,
    ) -> None:
        self._micro_batch = micro_batch
        self._criterion = criterion
        self._observe = observe
        self._is_first = is_first
        self._tokens: Tokens | None = None

    def __call__(
        self, *, hidden_states: torch.Tensor, output_layer: Any, output_weight: torch.Tensor | None,
        config: Any, **_megatron_passes_more: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Return Σ f(log p), a scalar: this is GPTModel's output processor on the last stage."""
        one = torch.ones((), device=hidden_states.device)
        # The layer itself is not called: with --overlap-param-gather its hook waits for its weight.
        for hook in output_layer._forward_pre_hooks.values():
            hook(output_layer, ())
        total, self._tokens = supervised_loss(
            hidden_states,
            OutputHead(
                output_layer.weight if output_weight is None else output_weight,
                self._criterion.vocab_size,
                tensor_group(),
                config.sequence_parallel,
            ),
            Supervision(
                self._micro_batch.rows,
                self._micro_batch.labels,
                denominators.token_weights(
                    self._criterion.denominator,
                    self._micro_batch,
                    self._criterion.objective,
                    self._criterion.vocab_size,
                ),
            ),
            self._criterion.objective,
            options=self._criterion.head,
            grad_scale=one if config.grad_scale_func is None else config.grad_scale_func(one),
        )
        if self._observe:
            self._observe(self._tokens)
        return total

    def report(self, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return Megatron-Core's 3-tuple: (sum of losses, what to divide by, report)."""
        assert self._tokens is not None
        count = denominators.count(
            self._criterion.denominator,
            self._micro_batch,
            self._tokens,
            self._criterion.objective,
            self._criterion.vocab_size,
            is_first=self._is_first,
        )
        entropy = self._tokens.statistics.get("entropy")
        return total, count, {"sums": token_sums(self._tokens.losses, self._tokens.log_p, count, entropy)}


def _packed(micro_batch: MicroBatch) -> PackedSeqParams:
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=micro_batch.cu_seqlens,
        cu_seqlens_kv=micro_batch.cu_seqlens,
        # The samples' padding to what context parallelism divides is part of them: after their last token.
        # Transformer Engine asks for it there; not told that it is none, it compares in every layer.
        cu_seqlens_q_padded=micro_batch.cu_seqlens,
        cu_seqlens_kv_padded=micro_batch.cu_seqlens,
        pad_between_seqs=False,
        max_seqlen_q=micro_batch.max_seqlen,
        max_seqlen_kv=micro_batch.max_seqlen,
    )
