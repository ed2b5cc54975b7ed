"""Parts of different sizes, as experts get them, can be gathered and scattered with gloo.

What: without a GPU the parts are padded to the largest one's rows, and cut afterwards.
Why: gloo's all-gather and reduce-scatter refuse parts of different sizes; NCCL's take them.
Upstream: Megatron-Core, tensor_parallel/mappings.py:154 (`_gather_along_first_dim`) and 197
    (`_reduce_scatter_along_first_dim`), of torch.distributed's `all_gather` and `reduce_scatter` with
    gloo.
Versions: Megatron-Core 0.19.2, torch from 2.11 on.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_probsft.runtime.megatron_patches import replace


def apply() -> None:
    """Wrap both functions for this process."""
    from megatron.core.tensor_parallel import mappings

    gather, scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_rows(
        input_: torch.Tensor, group: Any, output_split_sizes: Any = None, *options: Any
    ) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, output_split_sizes, *options)
        own = _padded(input_, max(output_split_sizes))
        parts = [torch.empty_like(own) for _ in output_split_sizes]
        torch.distributed.all_gather(parts, own, group=group)
        return torch.cat([part[:rows] for part, rows in zip(parts, output_split_sizes, strict=True)])

    def scatter_rows(
        input_: torch.Tensor, group: Any, input_split_sizes: Any = None, *options: Any
    ) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return scatter(input_, group, input_split_sizes, *options)
        rows = list(input_split_sizes)
        parts = [_padded(part, max(rows)) for part in input_.split(rows)]
        output = torch.empty_like(parts[0])
        torch.distributed.reduce_scatter(output, parts, group=group)
        return output[: rows[group.rank()]]

    replace(mappings, "_gather_along_first_dim", gather_rows)
    replace(mappings, "_reduce_scatter_along_first_dim", scatter_rows)


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
