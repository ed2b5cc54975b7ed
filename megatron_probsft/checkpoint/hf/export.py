"""Write a model that many ranks share as one Hugging Face folder; none holds more than a tensor of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_probsft.checkpoint.cuts import join
from megatron_probsft.checkpoint.hf import safetensors_folder
from megatron_probsft.checkpoint.hf.safetensors_writer import SafetensorsWriter, TensorPlan
from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns, add_record, fit_for_servers
from megatron_probsft.checkpoint.hf.weights import hf_shapes, matched_parameters
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed, folders
from megatron_probsft.runtime.errors import UserError


@torch.no_grad()
def save_hf_weights(
    model: Sequence[GPTModel], hf: HFModel, target: Path, trained: TrainedTurns | None = None
) -> None:
    """Write the model as a Hugging Face folder: config and tokenizer as they came, weights in their dtype.

    With `trained`, generation config and chat template are made those that the model was trained for.

    Every tensor has its place in the files before the first is written, so all ranks write at the same
    time, each the tensors that fall to it, on a file system that they share. Collective: an all-gather per
    parameter on one of the TP groups that hold it; small objects on the world.

    Raises:
        UserError: the target exists, too little space for it, a file could not be written.
    """
    dtype = next(model[0].parameters()).dtype
    plans = [TensorPlan(name, shape, dtype) for name, shape in hf_shapes(hf)]
    part = folders.part_of(target)
    writer = SafetensorsWriter(part, plans)

    def start() -> None:
        folders.check_is_new(target)
        folders.check_space(target, sum(plan.nbytes for plan in plans))
        folders.start_part(target)
        writer.create()

    def end() -> None:
        safetensors_folder.copy_side_files(hf.folder, part)  # config.json last: no part passes for a model
        safetensors_folder.set_dtype(part, dtype)
        if trained is not None:
            add_record(part, trained)
        fit_for_servers(part)
        folders.publish_part(target)

    is_first = dist.get_rank() == 0
    _together(target, start if is_first else None)
    _together(target, lambda: _write(model, hf, writer))
    _together(target, end if is_first else None)


def _write(model: Sequence[GPTModel], hf: HFModel, writer: SafetensorsWriter) -> None:
    """Write this rank's share of the tensors. After an error it still takes part in the gathers."""
    failure: OSError | None = None
    for index, (name, parameter, rule, hf_names) in enumerate(matched_parameters(model, hf)):
        if name == "output_layer.weight" and hf.shape.tied_embeddings:
            continue  # the last stage's copy of the embedding
        tensor_group, replicas = _groups(parameter)
        tp = dist.get_world_size(tensor_group)
        turn, replica = divmod(index, dist.get_world_size(replicas))
        if replica != dist.get_rank(replicas):
            continue
        shards = [parameter.detach()]
        if tp > 1 and rule.cut != "replicated":
            shards = [torch.empty_like(parameter) for _ in range(tp)]
            dist.all_gather(shards, parameter.detach().contiguous(), group=tensor_group)
        if turn % tp != dist.get_rank(tensor_group) or failure:
            continue
        try:
            joined = join(rule, [shard.cpu() for shard in shards], hf.shape)
            for hf_name, tensor in zip(hf_names, joined, strict=True):
                writer.write(hf_name, tensor)
        except OSError as error:
            failure = error
    if failure:
        raise failure
    writer.flush()


def _groups(parameter: torch.nn.Parameter) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Two groups: the ranks that share the parameter, and the ranks that hold the same shard of it."""
    if getattr(parameter, "allreduce", True):
        return distributed.tensor_group(), distributed.data_group()
    tensor_group: dist.ProcessGroup = parallel_state.get_expert_tensor_parallel_group()  # type: ignore[assignment]
    return tensor_group, parallel_state.get_expert_data_parallel_group()


def _together(target: Path, work: Callable[[], None] | None) -> None:
    """Do this rank's work, if any; a failure on one rank is raised on all. Collective over the world."""
    failure: str | None = None
    try:
        if work:
            work()
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = f"{target} could not be written: {error}"
    distributed.wait_for_all("writing the model")  # a slow disk is no reason for a time-out
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    first = next((text for text in failures if text), None)
    if first:
        if dist.get_rank() == 0:
            shutil.rmtree(folders.part_of(target), ignore_errors=True)
        raise UserError(first)
