"""A process joins the others here: torch.distributed, Megatron's process groups, its device, its seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import HashStore

from megatron_probsft.runtime.device import current_device, gpu_count, has_gpu
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.megatron_patches.apply import patch_for_cpu
from megatron_probsft.runtime.processes.environment import check_environment
from megatron_probsft.runtime.processes.heartbeat import start_heartbeat, stop_heartbeat
from megatron_probsft.runtime.processes.launch import launched_local_rank, launched_rank, launched_world_size
from megatron_probsft.runtime.processes.rendezvous import join_store
from megatron_probsft.runtime.processes.waiting import Waiting

_MINUTES = 10.0  # Megatron-LM's --distributed-timeout-minutes
_waiting: Waiting | None = None
_minutes = _MINUTES


def join_processes(timeout_minutes: float = _MINUTES) -> None:
    """Join torchrun's processes, or run alone: torch.distributed's world, without Megatron's groups.

    Where there are GPUs, the backend is NCCL and each local rank has one; elsewhere it is gloo. `set_device`
    binds a process to its GPU, not `device_id`: with that torch splits a communicator for every group, on all
    ranks, and training was found slower (NVIDIA-NeMo/RL#3073) or hung (pytorch#153960); Megatron-LM gives
    none either. Nothing happens where the processes have joined before.

    Args:
        timeout_minutes: so long the processes wait for each other to start; then, in each collective of
            theirs and of `initialize`'s groups; and for a sign of life of one that has stopped.

    Raises:
        UserError: no such GPU, or the processes do not find each other.
    """
    global _waiting, _minutes
    # Megatron-Core's overlap of communication and computation counts on one hardware queue.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if dist.is_initialized():
        return
    backend, time_limit = "nccl" if has_gpu() else "gloo", timedelta(minutes=timeout_minutes)
    if has_gpu():
        _take_gpu(launched_local_rank())
    if "RANK" not in os.environ or launched_world_size() == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=time_limit)
        return
    check_environment()
    rank, world_size, seconds = launched_rank(), launched_world_size(), time_limit.total_seconds()
    store = join_store(seconds)
    start_heartbeat(store, rank, world_size, seconds)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=time_limit)
    _waiting, _minutes = Waiting(store, rank, world_size), timeout_minutes


def _take_gpu(local_rank: int) -> None:
    if local_rank >= gpu_count():
        raise UserError(
            f"LOCAL_RANK={local_rank} has no GPU: this process sees {gpu_count()} (CUDA_VISIBLE_DEVICES); "
            "start as many processes on a machine, torchrun --nproc-per-node, as each of them sees GPUs"
        )
    # Packs are as long as a step's samples ask for: memory cut to fit one breaks up under the next.
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    torch.cuda.set_device(local_rank)


def initialize(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    *,
    expert_model_parallel_size: int = 1,
    virtual_stages: int | None = None,
    seed: int = 1234,
) -> None:
    """Join torchrun's processes (see `join_processes`), build Megatron's groups and seed its generators.

    Collective over the world.

    Args:
        expert_model_parallel_size: so many ranks share a mixture's experts, out of those that see different
            samples or different parts of them.
        virtual_stages: a pipeline rank has so many model chunks; None: one, without the interleaved schedule.
    """
    patch_for_cpu()
    join_processes()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        context_parallel_size=context_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        expert_model_parallel_size=expert_model_parallel_size,
        expert_tensor_parallel_size=tensor_model_parallel_size,
        distributed_timeout_minutes=_minutes,  # type: ignore[arg-type]  (into a timedelta)
        create_gloo_process_groups=False,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Undo `initialize`; call it once work is done, so that the backend's threads end cleanly.

    All ranks call it. Rank 0 waits in it for the others, some seconds at most, where it hosts their store.
    """
    global _waiting, _minutes
    stop_heartbeat()
    waiting, _waiting, _minutes = _waiting, None, _MINUTES
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    if waiting is not None:
        waiting.leave()


def tensor_group() -> dist.ProcessGroup:
    """Return the group of ranks that share each layer."""
    return parallel_state.get_tensor_model_parallel_group()  # type: ignore[return-value]


def context_group() -> dist.ProcessGroup:
    """Return the group of ranks that share each sequence."""
    return parallel_state.get_context_parallel_group()  # type: ignore[return-value]


def data_group() -> dist.ProcessGroup:
    """Return the group of ranks with the same weights, which see different samples or parts of samples."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)  # type: ignore[return-value]


def rank() -> int:
    """Return the global rank; 0 outside a distributed run."""
    return dist.get_rank() if dist.is_initialized() else launched_rank()


def world_size() -> int:
    """Return the number of processes; it is known before `initialize` too."""
    return dist.get_world_size() if dist.is_initialized() else launched_world_size()


def barrier() -> None:
    """Wait for all ranks, for no longer than a collective may take; `wait_for_all` has no limit."""
    dist.barrier(device_ids=[torch.cuda.current_device()] if has_gpu() else None)


def wait_for_all(doing: str) -> None:
    """Wait for all ranks, which are `doing` something that takes them very different times, without a limit.

    It is no collective. All ranks call it.
    """
    if _waiting is not None:
        _waiting.for_all(doing)


def on_first_rank[T](work: Callable[[], T], doing: str) -> T:
    """Do the work on rank 0 while the others wait, however long it takes; return its outcome on every rank.

    It is no collective, which would time out (`join_processes`). All ranks call it. The outcome is pickled
    and should be small.

    Raises:
        UserError, OSError: what the work raised, on every rank.
        RuntimeError: on the other ranks, where the work raised anything else.
    """
    return work() if _waiting is None else _waiting.on_first(work, doing)


def largest(number: int) -> int:
    """Return the largest of the ranks' numbers. Collective: one all-reduce of an integer over the world."""
    # Made on the device: a copy from the host would be waited for.
    found = torch.full((), number, device=current_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def say(text: str) -> None:
    """Print a line on the first rank's standard output."""
    if rank() == 0:
        print(text, flush=True)
