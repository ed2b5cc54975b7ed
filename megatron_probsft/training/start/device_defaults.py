"""The settings whose default follows from the device, the number of processes and a resumed run's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_probsft.runtime.device import has_gpu
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import TrainConfig, settings

_CHUNK_TOKENS = {True: 8192, False: 4096}
"""By whether there is a GPU. Each chunk of T rows has a GEMM of 2·T·V·h operations that ends in reading and
writing the float32 weight gradient, 8·V·h bytes. On an H100 (estimated: 0.7 × 989 TFLOP/s, 3.35 TB/s) that
traffic takes 20 % of the GEMM's time at T = 4096 and 10 % at 8192, whose logits over 152,064 columns are 2.3
GiB in bfloat16. On t tensor-parallel ranks t times as many rows hold as much memory, and two halves take
turns (`fused_head`): so × t. Never by the memory that is free: ranks would differ in their collectives."""


def by_device(
    config: TrainConfig, resumed: Path | None, world_size: int, *, gpu: bool | None = None
) -> TrainConfig:
    """Return the settings with a value for each whose default follows from the device; those given stay.

    Args:
        resumed: the checkpoint that the run goes on from, if one is; its run's choice is kept where a resumed
            run must have the same.
        world_size: the number of the run's processes.
        gpu: whether they have GPUs; None: as this one.
    """
    gpu = has_gpu() if gpu is None else gpu
    layout = config.layout
    replicas = world_size // (layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size)
    shared = gpu and replicas > 1
    # Asked for, the overlap of weights brings what it needs.
    asked = gpu and layout.overlap_param_gather is True
    values: dict[str, Any] = {
        "bf16": gpu,
        "use_distributed_optimizer": shared or asked,
        "overlap_grad_reduce": shared or asked,
        "gradient_accumulation_fusion": gpu,
        "make_vocab_size_divisible_by": 128 if gpu else 1,
        "loss_chunk_tokens": _CHUNK_TOKENS[gpu] * (layout.tensor_model_parallel_size if gpu else 1),
    }
    values |= _of_the_run_before(resumed)
    values = {name: value for name, value in values.items() if config.value(name) is None}
    config = config.replace(**values)
    if config.layout.overlap_param_gather is None:
        overlap = bool(
            shared and config.layout.use_distributed_optimizer and config.layout.overlap_grad_reduce
        )
        config = config.replace(overlap_param_gather=overlap)
    return config


def _of_the_run_before(resumed: Path | None) -> dict[str, Any]:
    if resumed is None:
        return {}
    saved = read_yaml_mapping(resumed / "train_config.yaml")
    names = (name for name, one in settings().items() if one.flag.by_device and one.flag.resume == "fixed")
    return {name: saved[name] for name in names if saved.get(name) is not None}
