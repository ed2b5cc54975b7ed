"""What Transformer Engine's modules have in common: extra state, parameters with their rules, collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


class ExtraState(torch.nn.Module):
    """A module whose state dict holds what FP8 needs to go on; without FP8 it is empty."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        if state is None:
            return
        if not isinstance(state, torch.Tensor):
            raise RuntimeError("Unsupported checkpoint format.")
        assert state.dtype == torch.uint8
        assert state.numel() == 0, "the stand-in holds no FP8 state"


class TransformerEngineBaseModule(ExtraState):
    """A layer with weights, made as Megatron-Core asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = self.fp8_calibration = False
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "recipe": None}
        self.activation_dtype: torch.dtype | None = None

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        self.tp_group = tp_group

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        assert num_gemms >= 1

    def _join(self, options: dict[str, Any]) -> None:
        """Take the tensor-parallel group, and what is the same for all kinds of linear layers."""
        group = options.get("tp_group")
        self.tp_size = options.get("tp_size", 1) if group is None else group.size()
        assert self.tp_size == options.get("tp_size", 1), "tp_size is not the group's"
        if group is not None or self.tp_size == 1:
            self.set_tensor_parallel_group(group)
        self.sequence_parallel = self.tp_size > 1 and options.get("sequence_parallel", False)
        self.parallel_mode = options.get("parallel_mode")
        assert self.parallel_mode in ("row", "column", None)
        self.fuse_wgrad_accumulation = options.get("fuse_wgrad_accumulation", False)
        self.use_bias = options.get("bias", True)
        self.return_bias = options.get("return_bias", False)
        self.ub_name = options.get("ub_name")
        overlap = [name for name, value in options.items() if name.startswith("ub_") and value is True]
        assert not overlap, f"initialize_ub() must be called before layer construction: {overlap}"
        assert not options.get("delay_wgrad_compute"), "the stand-in computes weight gradients at once"

    def _parameter(
        self, options: dict[str, Any], *shape: int, init: Callable[[torch.Tensor], Any] | None
    ) -> torch.nn.Parameter:
        """A parameter of the wanted dtype on the wanted device; a weight's generator must be known."""
        parameter = torch.nn.Parameter(
            torch.empty(*shape, device=options["device"], dtype=options["params_dtype"])
        )
        assert parameter.device.type != "meta", "Transformer Engine would put it on the GPU"
        if init is None:
            return parameter
        tracker = options.get("get_rng_state_tracker")
        if tracker is None:
            init(parameter)
            return parameter
        name = options.get("rng_tracker_name")
        with torch.no_grad(), tracker().fork(*([name] if name else [])):
            init(parameter)
        return parameter

    def _check_input(self, inp: torch.Tensor, in_features: int) -> None:
        assert inp.shape[-1] == in_features, "GEMM not possible"
        if self.activation_dtype == inp.dtype:
            return
        for name, parameter in self.named_parameters():
            if parameter.dtype != inp.dtype:
                raise TypeError(
                    "Data types for parameters must match when outside of autocasted region. Found input "
                    f"dtype: {inp.dtype} and {name!r} dtype: {parameter.dtype}"
                )
        self.activation_dtype = inp.dtype


def partitioned(parameter: torch.nn.Parameter, dim: int) -> None:
    """Mark a parameter as Megatron-Core does a tensor-parallel one."""
    tensor: Any = parameter
    tensor.tensor_model_parallel, tensor.partition_dim, tensor.partition_stride = True, dim, 1


class Product(torch.autograd.Function):
    """`inp @ weight.T`, whose weight gradient may go straight to `weight.main_grad`."""

    @staticmethod
    def forward(ctx: Any, inp: torch.Tensor, weight: torch.Tensor, fuse: bool) -> torch.Tensor:
        ctx.save_for_backward(inp, weight)
        ctx.fuse, ctx.weight = fuse, weight
        return inp @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:  # type: ignore[override]
        inp, weight = ctx.saved_tensors
        to_weight = grad.flatten(0, -2).T @ inp.flatten(0, -2)
        if not ctx.fuse:
            return grad @ weight, to_weight, None
        ctx.weight.main_grad.add_(to_weight)
        if not hasattr(ctx.weight, "grad_added_to_main_grad"):
            return grad @ weight, None, None
        # Megatron-Core's data-parallel hook wants a gradient to come, and does not look at it.
        ctx.weight.grad_added_to_main_grad = True
        return grad @ weight, torch.full_like(weight, torch.nan), None


class ToColumns(torch.autograd.Function):
    """The way into a column-parallel layer: the sequence gathered, or the same; back: the gradient's sum."""

    @staticmethod
    def forward(ctx: Any, inp: torch.Tensor, group: dist.ProcessGroup, sequence: bool) -> torch.Tensor:
        ctx.group, ctx.sequence = group, sequence
        return gathered(inp, group) if sequence else inp.view_as(inp)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return summed(grad, ctx.group, ctx.sequence), None, None


class FromRows(torch.autograd.Function):
    """The way out of a row-parallel layer: the sum, of which each rank may keep its part of the sequence."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, group: dist.ProcessGroup, sequence: bool) -> torch.Tensor:
        ctx.group, ctx.sequence = group, sequence
        return summed(out, group, sequence)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return gathered(grad, ctx.group) if ctx.sequence else grad, None, None


def gathered(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All ranks' parts, one after the other along the first dimension."""
    whole = tensor.new_empty(tensor.shape[0] * group.size(), *tensor.shape[1:])
    dist.all_gather_into_tensor(whole, tensor.contiguous(), group=group)
    return whole


def summed(tensor: torch.Tensor, group: dist.ProcessGroup, scattered: bool) -> torch.Tensor:
    """The sum over ranks; scattered: this rank's part of its first dimension."""
    if not scattered:
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total
    assert tensor.shape[0] % group.size() == 0, "First dimension should be divisible by tensor parallel size"
    part = tensor.new_empty(tensor.shape[0] // group.size(), *tensor.shape[1:])
    dist.reduce_scatter_tensor(part, tensor.contiguous(), group=group)
    return part
