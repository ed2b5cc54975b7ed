"""What goes wrong without each patch of runtime/megatron_patches, as JSON on standard output.

It is a process of its own, since a patch stays: `python -m tests.support.patch_faults` imports Megatron-Core
once, and shows each fault in a forked child, where all other patches are in place; then with all of them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import queue
import re
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.forked import FORK, outcome_in_child

UNEVEN = [1, 3]


def main() -> None:
    import megatron.core.models.gpt
    import megatron.core.optimizer  # noqa: F401

    outcomes: dict[str, Any] = {
        "imports inductor": "torch._inductor" in sys.modules,
        "uncalled functions": _uncalled_functions(),
        "modules without the literal": _modules_without_the_literal(),
    }
    for name, fault in FAULTS.items():
        outcomes[name] = [outcome_in_child(_show, fault, patched, name) for patched in (False, True)]
    print(json.dumps(outcomes))


def _show(fault: Callable[[bool], None], patched: bool, name: str) -> None:
    """Raise what goes wrong without the patch, or with all of them."""
    from megatron_probsft.runtime.megatron_patches.apply import WITHOUT_GPU, patch_for_cpu

    one_left_out = [patch for patch in WITHOUT_GPU if not patch.__name__.endswith(f".{name}")]
    if patched or len(one_left_out) == len(WITHOUT_GPU):
        patch_for_cpu()
    else:
        for patch in one_left_out:
            patch.apply()
    fault(patched)


def cuda_functions(_: bool) -> None:
    import torch
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.utils import GlobalMemoryBuffer

    GlobalMemoryBuffer().get_tensor([2], torch.float32, "x")
    model_parallel_cuda_manual_seed(1, tp_rank=0, ep_rank=0, etp_rank=0)


def cuda_factories(_: bool) -> None:
    from megatron.core.transformer.utils import get_default_causal_mask

    assert get_default_causal_mask(2).tolist() == [[False, True], [False, False]]


def rng_tracker(_: bool) -> None:
    import torch
    from megatron.core.tensor_parallel import random

    tracker = random.CudaRNGStatesTracker()
    torch.manual_seed(0)
    tracker.add("x", 1)
    torch.manual_seed(0)
    with tracker.fork("x"):
        inside = torch.rand(1)
    after = torch.rand(1)
    assert inside == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert after == torch.rand(1, generator=torch.Generator().manual_seed(0))


def tensor_type_names(_: bool) -> None:
    import torch
    from megatron.core.optimizer.optimizer import clip_grad_by_total_norm_fp32

    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), 2.0)
    clip_grad_by_total_norm_fp32([parameter], max_norm=1.0, total_norm=2.0)
    assert torch.allclose(parameter.grad, torch.ones(2))


def token_dispatcher(_: bool) -> None:
    import torch
    from megatron.core.transformer.moe import token_dispatcher

    found: Any = token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1]), as_numpy=True)
    assert type(found).__module__ == "numpy"


def uneven_collectives(_: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ranks = [FORK.Process(target=_uneven_rank, args=(rank, f"{folder}/store")) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
        assert [rank.exitcode for rank in ranks] == [0, 0]


def _uneven_rank(rank: int, store: str) -> None:
    import torch
    import torch.distributed as dist
    from megatron.core.tensor_parallel import mappings

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group, rows = dist.group.WORLD, sum(UNEVEN)
    whole = torch.arange(2.0 * rows).reshape(rows, 2)
    try:
        part = whole.split(UNEVEN)[rank]
        gathered = mappings._gather_along_first_dim(part, group, UNEVEN)
        scattered = mappings._reduce_scatter_along_first_dim(whole, group, UNEVEN)
        right = torch.equal(gathered, whole) and torch.equal(scattered, 2 * part)
    except (RuntimeError, ValueError):
        right = False
    os._exit(0 if right else 1)


def saving_before_the_first_step(patched: bool) -> None:
    from megatron_probsft.runtime.megatron_patches import torch_adam

    optimizer = _distributed_optimizer()
    if patched:
        torch_adam.apply(optimizer)
    optimizer.state_dict()


def nonfinite_gradients(patched: bool) -> None:
    import torch

    from megatron_probsft.runtime.megatron_patches import nonfinite_gradients, torch_adam

    optimizer: Any = _distributed_optimizer()
    torch_adam.apply(optimizer)
    if patched:
        nonfinite_gradients.apply(optimizer)
    for buffer in optimizer.buffers:
        buffer.grad_data.fill_(math.inf)
    assert optimizer.step() == (False, None, None)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in optimizer.get_parameters())


def weight_gradient_fusion(patched: bool) -> None:
    import torch
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer import TransformerConfig

    from megatron_probsft.runtime import distributed
    from megatron_probsft.runtime.megatron_patches import weight_gradient_fusion

    distributed.initialize()
    if patched:
        weight_gradient_fusion.apply()
    config = TransformerConfig(
        num_layers=1, hidden_size=4, num_attention_heads=1, gradient_accumulation_fusion=True,
        params_dtype=torch.bfloat16,
    )  # fmt: skip
    layer = ColumnParallelLinear(
        4, 3, config=config, init_method=torch.nn.init.normal_, bias=False, skip_bias_add=True
    )
    weight: Any = layer.weight
    weight.main_grad, weight.grad_added_to_main_grad = torch.full((3, 4), 0.5), False
    rows = torch.arange(20.0).reshape(5, 1, 4).bfloat16().requires_grad_()
    layer(rows)[0].sum().backward()
    assert torch.equal(weight.main_grad, 0.5 + rows.detach().float().sum((0, 1)).expand(3, 4))
    assert weight.grad_added_to_main_grad


def gradient_norm(patched: bool) -> None:
    import torch
    from megatron.core.optimizer import clip_grads
    from torch.utils._python_dispatch import TorchDispatchMode

    from megatron_probsft.runtime.megatron_patches import gradient_norm

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.found += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    if patched:
        gradient_norm.apply()
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])]
    with Reads() as reads:
        norm, _ = clip_grads.l2_norm_impl(0, torch.zeros(1), [gradients], False)
        clip_grads.multi_tensor_scale_impl(0, torch.zeros(1), [gradients, gradients], 0.5)
    assert norm.tolist() == [5.0]
    assert [gradient.flatten().tolist() for gradient in gradients] == [[1.5, 0.0], [0.0, 2.0]]
    assert reads.found == 0, "the host reads each gradient's norm"


def results_queue(patched: bool) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_probsft.runtime.megatron_patches import results_queue

    def starts_no_process(_: str) -> Any:
        raise AssertionError("a process manager is started")

    filesystem_async.mp = types.SimpleNamespace(get_context=starts_no_process)  # type: ignore[assignment]
    if patched:
        results_queue.apply()
    assert isinstance(filesystem_async.get_write_results_queue(), queue.Queue)


def _distributed_optimizer() -> Any:
    """Of a model whose three layers, 9 or 10 parameters each, have a bucket each."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer import TransformerConfig

    from megatron_probsft.runtime import distributed

    distributed.initialize()
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(3)))
    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=True, bucket_size=9
    )
    wrapped: Any = DistributedDataParallel(config, ddp, model)  # type: ignore[arg-type]
    settings = OptimizerConfig(lr=0.1, use_distributed_optimizer=True)
    chain: Any = get_megatron_optimizer(settings, [wrapped], use_gloo_process_groups=False)
    (inner,) = chain.chained_optimizers
    return inner


def _uncalled_functions() -> list[str]:
    """The replaced names of torch.cuda that no imported module of Megatron-Core calls any more."""
    from megatron_probsft.runtime.megatron_patches.without_gpu.cuda_functions import REPLACEMENTS

    modules = [module for name, module in sys.modules.items() if name.startswith("megatron.core.")]
    files = [Path(module.__file__) for module in modules if module.__file__]
    sources = "".join(file.read_text() for file in files if file.suffix == ".py")
    return [name for name in REPLACEMENTS if f"torch.cuda.{name}(" not in sources]


def _modules_without_the_literal() -> list[str]:
    """The modules that see another torch and make no tensor with device="cuda" any more."""
    from megatron_probsft.runtime.megatron_patches.without_gpu.cuda_factories import MODULES

    sources = {name: inspect.getsource(importlib.import_module(name)) for name in MODULES}
    return [name for name, source in sources.items() if not re.search("device=['\"]cuda", source)]


FAULTS: dict[str, Callable[[bool], None]] = {
    fault.__name__: fault
    for fault in (
        cuda_functions, cuda_factories, rng_tracker, tensor_type_names, token_dispatcher, uneven_collectives,
        saving_before_the_first_step, nonfinite_gradients, weight_gradient_fusion, gradient_norm,
        results_queue,
    )
}  # fmt: skip

if __name__ == "__main__":
    main()
