"""Linear layers on tensor-parallel ranks, with a norm before them or not."""

from __future__ import annotations

from typing import Any

import torch

from transformer_engine.pytorch.base import (
    FromRows,
    Product,
    ToColumns,
    TransformerEngineBaseModule,
    partitioned,
)
from transformer_engine.pytorch.fp8 import check_shapes
from transformer_engine.stand_in import calls, check_arguments, since


class Linear(TransformerEngineBaseModule):
    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        kind = "LayerNormLinear" if isinstance(self, LayerNormLinear) else "Linear"
        check_arguments(kind, options)
        super().__init__()
        self._join(options)
        self.in_features, self.out_features = in_features, out_features
        if self.parallel_mode == "column":
            self.out_features, rest = divmod(out_features, self.tp_size)
            assert rest == 0
        elif self.parallel_mode == "row":
            self.in_features, rest = divmod(in_features, self.tp_size)
            assert rest == 0
        if since("2.6"):
            self.save_original_input = False
        if isinstance(self, LayerNormLinear):
            self._make_norm(options)
        self.weight = self._parameter(
            options, self.out_features, self.in_features, init=options["init_method"]
        )
        partitioned(self.weight, 1 if self.parallel_mode == "row" else 0)
        if not self.use_bias:
            self.bias: Any = torch.empty(0, dtype=options["params_dtype"], device=options["device"])
            return
        self.bias = self._parameter(options, self.out_features, init=None)
        self.bias.data.zero_()
        if self.parallel_mode == "column":
            partitioned(self.bias, 0)
        elif self.parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(
        self,
        inp: torch.Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool = False,
        fp8_grad: bool = False,
    ) -> Any:
        assert is_first_microbatch in (True, False, None)
        self._check_input(inp, self.in_features)
        inp = self._before(inp)
        calls[type(self).__name__, self.parallel_mode] += 1
        check_shapes(inp, self.weight)
        parallel = self.tp_size > 1
        if parallel and self.parallel_mode == "column":
            inp = ToColumns.apply(inp, self.tp_group, self.sequence_parallel)  # type: ignore[assignment]
        out: Any = Product.apply(inp, self.weight, self.fuse_wgrad_accumulation)
        added = self.use_bias and not self.return_bias
        if added and self.parallel_mode != "row":
            out = out + self.bias
        if parallel and self.parallel_mode == "row":
            out = FromRows.apply(out, self.tp_group, self.sequence_parallel)
        if added and self.parallel_mode == "row":
            out = out + self.bias
        return (out, self.bias) if self.return_bias else out

    def _before(self, inp: torch.Tensor) -> torch.Tensor:
        return inp


class LayerNormLinear(Linear):
    """RMSNorm on this rank's part of the sequence, then a column-parallel layer."""

    def _make_norm(self, options: dict[str, Any]) -> None:
        assert options.get("normalization") == "RMSNorm", "the stand-in has RMSNorm only"
        assert self.parallel_mode != "row", "Normalization does not support tensor-parallel distribution."
        assert not options.get("return_layernorm_output")
        self.eps, self.normalization = options.get("eps", 1e-5), "RMSNorm"
        self.zero_centered_gamma = options.get("zero_centered_gamma", False)
        assert not self.zero_centered_gamma
        self.layer_norm_weight = self._parameter(options, self.in_features, init=None)
        self.layer_norm_weight.data.fill_(1.0)
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_bias = None

    def _before(self, inp: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(inp, inp.shape[-1:], self.layer_norm_weight, self.eps)
