"""What keeps a bad batch from ruining the weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer

from megatron_probsft.training.batches import StepBatch


def skip_non_finite_gradients(optimizer: MegatronOptimizer) -> None:
    """Let `optimizer.step()` return (False, None, None), nothing changed, where the gradient is not finite.

    Megatron-Core does so for fp16 only. The norm is the same on every rank, so all of them skip alike.
    """
    prepare, norm = optimizer.prepare_grads, optimizer.get_grad_norm
    found: list[float] = []

    def prepare_grads() -> bool:
        if prepare():
            return True
        found[:] = [norm()]
        return not math.isfinite(found[0])

    optimizer.prepare_grads = prepare_grads  # type: ignore[method-assign]
    # The step itself asks again: one pass over the gradients is enough.
    optimizer.get_grad_norm = lambda: found[0]  # type: ignore[method-assign]


def save_batch(run_folder: Path, iteration: int, batch: StepBatch) -> str:
    """Write the step's micro-batches for inspection, a file per data-parallel rank; returns their pattern.

    `torch.load` gives a list of dictionaries of tensors: tokens, labels, cu_seqlens, …
    """
    pattern = f"skipped_step_{iteration:07d}_data_rank_*.pt"
    first_of_its_replica = (
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_first_stage()
    )
    if first_of_its_replica:
        rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        content = [dataclasses.asdict(micro_batch) for micro_batch in batch.micro_batches]
        torch.save(content, run_folder / pattern.replace("*", str(rank)))
    return str(run_folder / pattern)
