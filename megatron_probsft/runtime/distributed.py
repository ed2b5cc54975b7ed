"""A process joins the others here: torch.distributed, Megatron's process groups, its device, its seeds."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import HashStore

from megatron_probsft.runtime.device import has_gpu
from megatron_probsft.runtime.launch import launched_rank, launched_world_size
from megatron_probsft.runtime.megatron_patches.apply import patch_for_cpu


def initialize(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    *,
    expert_model_parallel_size: int = 1,
    virtual_stages: int | None = None,
    seed: int = 1234,
) -> None:
    """Join torchrun's processes (or run alone), build Megatron's groups and seed its generators.

    Where there are GPUs, the backend is NCCL and each local rank has one; elsewhere it is gloo. Collective
    over the world.

    Args:
        expert_model_parallel_size: so many ranks share a mixture's experts, out of those that see different
            samples or different parts of them.
        virtual_stages: a pipeline rank has so many model chunks; None: one, without the interleaved schedule.
    """
    patch_for_cpu()
    # Megatron-Core's overlap of communication and computation counts on one hardware queue.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if has_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        backend = "nccl" if has_gpu() else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        context_parallel_size=context_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        expert_model_parallel_size=expert_model_parallel_size,
        expert_tensor_parallel_size=tensor_model_parallel_size,
        create_gloo_process_groups=False,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Undo `initialize`; call it once work is done, so that the backend's threads end cleanly."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


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
    """Wait for all ranks."""
    dist.barrier()


def say(text: str) -> None:
    """Print a line on the first rank's standard output."""
    if rank() == 0:
        print(text, flush=True)
