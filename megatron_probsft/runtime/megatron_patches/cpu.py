"""Everything Megatron-Core 0.19.2 needs to run on a machine without CUDA, in one place.

`enable()` is a no-op where CUDA is available. Elsewhere it replaces only names that would raise without
CUDA, so nothing that works changes its meaning, and it refuses to run if one of them no longer exists:

1. `torch.cuda.current_device`, `synchronize`, … and `Tensor.cuda`, called all over Megatron-Core.
2. Tensor factories with a literal `device="cuda"`: the few modules that have them see a proxy of `torch`.
3. The RNG tracker, which keeps named states of the CUDA generator: here of the CPU generator.
4. Comparisons of `Tensor.type()` with `"torch.cuda.FloatTensor"` in the optimizers and in clipping.
5. The dispatcher of tokens to experts: it makes NumPy arrays of CUDA tensors only, and gathers parts of
   different sizes, which gloo cannot.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("zeros", "ones", "empty", "tensor", "full")
_MODULES_WITH_LITERAL_CUDA = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.optimizer",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
)
_CHECKS_OF_TYPE_NAMES = (
    ("megatron.core.optimizer.optimizer", "Float16OptimizerWithFloat16Params", "__init__"),
    ("megatron.core.optimizer.distrib_optimizer", "DistributedOptimizer", "__init__"),
    ("megatron.core.optimizer.optimizer", None, "clip_grad_by_total_norm_fp32"),
)


@functools.cache
def enable() -> None:
    """Make Megatron-Core usable without CUDA. Call before building groups, models or optimizers."""
    if torch.cuda.is_available():
        return
    _replace_cuda_functions()
    proxy = _torch_with_cpu_factories()
    for name in _MODULES_WITH_LITERAL_CUDA:
        module = importlib.import_module(name)
        assert module.torch is torch, f"{name} no longer imports torch: see megatron_patches/cpu.py"
        module.torch = proxy  # type: ignore[attr-defined]
    _replace_rng_tracker()
    _replace_dispatchers_copy()
    _replace_uneven_collectives()
    for module_name, class_name, function_name in _CHECKS_OF_TYPE_NAMES:
        module = importlib.import_module(module_name)
        owner = getattr(module, class_name) if class_name else module
        setattr(owner, function_name, _with_cuda_type_names(getattr(owner, function_name)))


class _Stream:
    """Stands for a CUDA stream: work on the CPU is in order already."""

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self) -> _Stream:
        return self  # an event too is only waited for


def _replace_cuda_functions() -> None:
    replacements: dict[str, Callable] = {
        "current_device": lambda: _CPU,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: _Stream(),
        "Stream": _Stream,
        "stream": contextlib.nullcontext,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
    }
    for name, function in replacements.items():
        assert hasattr(torch.cuda, name), f"torch.cuda.{name} is gone: see megatron_patches/cpu.py"
        setattr(torch.cuda, name, function)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment,method-assign]


def _torch_with_cpu_factories() -> types.ModuleType:
    """A module that is `torch`, except that its factories take `device="cuda"` for the CPU."""

    class TorchOnCpu(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def on_cpu(factory: Callable) -> Callable:
        @functools.wraps(factory)
        def create(*args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("device") == "cuda":
                kwargs["device"] = _CPU
            return factory(*args, **kwargs)

        return create

    proxy = TorchOnCpu("torch")
    for name in _FACTORIES:
        setattr(proxy, name, on_cpu(getattr(torch, name)))
    return proxy


def _replace_rng_tracker() -> None:
    from megatron.core.tensor_parallel import random

    for name in ("CudaRNGStatesTracker", "_get_cuda_rng_state", "_set_cuda_rng_state"):
        assert hasattr(random, name), f"tensor_parallel.random.{name} is gone: see megatron_patches/cpu.py"

    class CpuRNGStatesTracker(random.CudaRNGStatesTracker):
        """The same named states, of the CPU generator."""

        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            if name not in self.states_:
                raise KeyError(f"no RNG state is named {name!r}")
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    random.CudaRNGStatesTracker = CpuRNGStatesTracker  # type: ignore[misc]
    random._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _replace_dispatchers_copy() -> None:
    from megatron.core.transformer.moe import token_dispatcher

    def as_asked(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    name = "maybe_move_tensor_to_cpu"
    assert hasattr(token_dispatcher, name), f"token_dispatcher.{name} is gone: see megatron_patches/cpu.py"
    setattr(token_dispatcher, name, as_asked)


def _replace_uneven_collectives() -> None:
    from megatron.core.tensor_parallel import mappings

    gather, scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])

    def gather_rows(
        input_: torch.Tensor, group: Any, output_split_sizes: Any = None, *options: Any
    ) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, output_split_sizes, *options)
        own = padded(input_, max(output_split_sizes))
        parts = [torch.empty_like(own) for _ in output_split_sizes]
        torch.distributed.all_gather(parts, own, group=group)
        return torch.cat([part[:rows] for part, rows in zip(parts, output_split_sizes, strict=True)])

    def scatter_rows(
        input_: torch.Tensor, group: Any, input_split_sizes: Any = None, *options: Any
    ) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return scatter(input_, group, input_split_sizes, *options)
        rows = list(input_split_sizes)
        parts = [padded(part, max(rows)) for part in input_.split(rows)]
        output = torch.empty_like(parts[0])
        torch.distributed.reduce_scatter(output, parts, group=group)
        return output[: rows[group.rank()]]

    mappings._gather_along_first_dim = gather_rows
    mappings._reduce_scatter_along_first_dim = scatter_rows


def _with_cuda_type_names(function: Callable) -> Callable:
    """`function`, during which `Tensor.type()` names CPU types as if they were CUDA's."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        original = torch.Tensor.type

        def type_name(self: torch.Tensor, *type_args: Any, **type_kwargs: Any) -> Any:
            result = original(self, *type_args, **type_kwargs)
            return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

        torch.Tensor.type = type_name  # type: ignore[method-assign]
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.type = original  # type: ignore[method-assign]

    return call
