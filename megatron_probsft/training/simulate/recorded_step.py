"""A run's own optimizer step under a recorder: of fake tensors or of real ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint.megatron.optimizer_state import inner_optimizers
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.simulate.recorder import PIPELINE, Group, StepRecorder
from megatron_probsft.training.state import TrainState
from megatron_probsft.training.step import Criterion, train_step

EACH_MICRO_BATCH = "each micro-batch"
ONCE_A_STEP = "once a step"


def recorded_state(build: Callable[[], TrainState], recorder: StepRecorder) -> TrainState:
    """Build a run's state, with the optimizer's moments, whose steps can be recorded.

    An update without forward and backward pass makes the moments. The kinds are weights, gradients,
    optimizer; then activations, head, communication; the phases those of this file. Collective over the
    world.
    """
    with recorder:
        state = build()
        state.optimizer.step()
        recorder.adopt((parameter.data for parameter in _parameters(state)), "weights")
        recorder.adopt((parameter.main_grad for parameter in _parameters(state)), "gradients")
        recorder.adopt(optimizer_tensors(state), "optimizer")
        _watch_head(state.gpt, recorder)
        _watch_end_of_backward(state.gpt, recorder)
    return state


def record_step(state: TrainState, batch: StepBatch, criterion: Criterion, recorder: StepRecorder) -> None:
    """Do a step of a `recorded_state`, of which alone the recorder then tells. Collective over the world."""
    with recorder:
        recorder.restart(EACH_MICRO_BATCH)
        train_step(state, batch, criterion)


def groups_by_name() -> dict[str, Group]:
    """Return the report's names of Megatron-Core's process groups, by torch's `group_name`."""
    groups = {
        "world": torch.distributed.group.WORLD,
        "model": parallel_state.get_model_parallel_group(),
        "expert DP": parallel_state.get_expert_data_parallel_group(),
        "expert TP": parallel_state.get_expert_tensor_parallel_group(),
        "expert TP × EP": parallel_state.get_expert_tensor_and_model_parallel_group(),
        "embedding": parallel_state.get_embedding_group(check_initialized=False),
        "EP": parallel_state.get_expert_model_parallel_group(),
        "CP": parallel_state.get_context_parallel_group(),
        "PP": parallel_state.get_pipeline_model_parallel_group(),
        "TP": parallel_state.get_tensor_model_parallel_group(),
        "DP": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    by_name = {
        str(group.group_name): Group(name, group.size())
        for name, group in groups.items()
        if isinstance(group, torch.distributed.ProcessGroup)
    }
    by_name[PIPELINE] = Group("PP", parallel_state.get_pipeline_model_parallel_world_size())
    return by_name


def _parameters(state: TrainState) -> Iterator[Any]:
    return itertools.chain.from_iterable(chunk.parameters() for chunk in state.model)


def optimizer_tensors(state: TrainState) -> Iterator[torch.Tensor]:
    """Yield the moments, and the main weights where they are not the model's own; not the counts of steps."""
    weights = {parameter.untyped_storage()._cdata for parameter in _parameters(state)}
    for optimizer in inner_optimizers(state.optimizer):
        for group in optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                moments = optimizer.optimizer.state[parameter].values()
                for tensor in (parameter, *moments):
                    if tensor.dim() and tensor.untyped_storage()._cdata not in weights:
                        yield tensor


def _watch_head(chunks: list[GPTModel], recorder: StepRecorder) -> None:
    """Count what is made between the last layer and the end of the model as the head's."""
    for chunk in chunks:
        if chunk.post_process:
            chunk.decoder.register_forward_hook(lambda *_: recorder.use_kind("head"))
            chunk.register_forward_hook(lambda *_: recorder.use_kind("activations"))


def _watch_end_of_backward(chunks: list[GPTModel], recorder: StepRecorder) -> None:
    """Tell the work of micro-batches from what follows their last backward pass."""
    for chunk in chunks:
        finalize = chunk.config.finalize_model_grads_func

        def watched(*args: Any, finalize: Any = finalize, **kwargs: Any) -> Any:
            recorder.begin(ONCE_A_STEP)
            return finalize(*args, **kwargs)

        chunk.config.finalize_model_grads_func = watched
        break  # chunks share their config
