"""Which GPUs each of several engines takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_probsft.runtime.errors import UserError


def engine_devices(tensor_parallel_size: int, data_parallel_size: int | None) -> Sequence[str | None]:
    """Return the CUDA_VISIBLE_DEVICES of each engine; None leaves an engine the environment's.

    A model that one GPU holds is fastest with an engine on every GPU: tensor parallelism adds collectives to
    every token. So all GPUs are used unless `data_parallel_size` says otherwise; without GPUs one engine is.

    Raises:
        UserError: there are fewer GPUs than the engines take.
    """
    from megatron_probsft.runtime.device import gpu_count  # here: it imports torch, which takes seconds

    gpus = gpu_count()
    if gpus == 0:  # vLLM's own interpreter may see some, and on CPUs it has tensor parallelism too
        return [None] * (data_parallel_size or 1)
    if gpus < tensor_parallel_size:
        raise UserError(f"--tensor-parallel-size {tensor_parallel_size}: this process may use {gpus} GPU(s)")
    engines = gpus // tensor_parallel_size if data_parallel_size is None else data_parallel_size
    if engines * tensor_parallel_size > gpus:
        raise UserError(
            f"--data-parallel-size {engines} × --tensor-parallel-size {tensor_parallel_size} take "
            f"{engines * tensor_parallel_size} GPUs: this process may use {gpus}"
        )
    if engines == 1:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    names = [name.strip() for name in visible.split(",")]
    starts = range(0, engines * tensor_parallel_size, tensor_parallel_size)
    return [",".join(names[start : start + tensor_parallel_size]) for start in starts]
