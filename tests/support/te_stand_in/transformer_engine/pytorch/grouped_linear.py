"""A linear layer of several experts, whose tokens come one expert after the other."""

from __future__ import annotations

from typing import Any

import torch

from transformer_engine.pytorch.base import Product, TransformerEngineBaseModule, partitioned
from transformer_engine.stand_in import calls, check_arguments, since


class GroupedLinear(TransformerEngineBaseModule):
    """It communicates nothing: Megatron-Core's dispatcher does."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, **options: Any) -> None:
        check_arguments("GroupedLinear", options)
        super().__init__()
        self._join(options)
        assert not (self.tp_size > 1 and self.use_bias)
        assert not options.get("single_grouped_weight")
        self.num_gemms, self.in_features, self.out_features = num_gemms, in_features, out_features
        if self.parallel_mode == "column":
            self.out_features //= self.tp_size
        elif self.parallel_mode == "row":
            self.in_features //= self.tp_size
        if since("2.6"):
            self.save_original_input = False
        for number in range(num_gemms):
            shape = (self.out_features, self.in_features)
            weight = self._parameter(options, *shape, init=options["init_method"])
            partitioned(weight, 1 if self.parallel_mode == "row" else 0)
            self.register_parameter(f"weight{number}", weight)
            if self.use_bias:
                bias = self._parameter(options, self.out_features, init=None)
                bias.data.zero_()
                self.register_parameter(f"bias{number}", bias)

    def forward(
        self, inp: torch.Tensor, m_splits: Any, is_first_microbatch: bool | None = None
    ) -> torch.Tensor:
        self._check_input(inp, self.in_features)
        if not since("2.18"):  # a list of Python's integers; a tensor's would be read from the device
            assert isinstance(m_splits, list)
            assert all(type(rows) is int for rows in m_splits)
        rows = [int(count) for count in m_splits]
        assert len(rows) == self.num_gemms
        assert sum(rows) == inp.shape[0]
        calls["GroupedLinear", self.num_gemms] += 1
        weights = [getattr(self, f"weight{number}") for number in range(self.num_gemms)]
        parts = [
            Product.apply(part, weight, self.fuse_wgrad_accumulation)
            for part, weight in zip(inp.split(rows), weights, strict=True)
        ]
        assert not self.use_bias
        return torch.cat(parts)  # type: ignore[arg-type]
