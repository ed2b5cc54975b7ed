"""Calls a function on several ranks of this machine, as torchrun would start them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from megatron_probsft.runtime import distributed


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Returns what `function(*args)` returned on each rank of a fresh world, in rank order.

    The function initialises Megatron's groups itself (`distributed.initialize`). Each rank is forked and has
    one thread.
    """
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world_size, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, run_id="benchmark", start_method="fork",
    )  # fmt: skip
    results = elastic_launch(config, _call)(function, args)
    return [results[rank] for rank in range(world_size)]


def _call(function: Callable[..., Any], args: tuple) -> Any:
    torch.set_num_threads(1)
    try:
        return function(*args)
    finally:
        distributed.shutdown()
