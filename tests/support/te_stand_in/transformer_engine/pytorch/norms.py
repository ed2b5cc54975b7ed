"""Norms by themselves. In Transformer Engine they are operations, whose extra state is a module's too."""

from __future__ import annotations

from typing import Any

import torch

from transformer_engine.pytorch.base import ExtraState
from transformer_engine.stand_in import calls, check_arguments


class RMSNorm(ExtraState):
    def __init__(self, normalized_shape: int, **options: Any) -> None:
        check_arguments("RMSNorm", options)
        super().__init__()
        assert not options.get("zero_centered_gamma")
        self.eps = options.get("eps", 1e-5)
        self.weight = torch.nn.Parameter(
            torch.ones(normalized_shape, device=options["device"], dtype=options["params_dtype"])
        )
        self.sequence_parallel = options.get("sequence_parallel")
        if self.sequence_parallel is not None:
            self.weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, inp: torch.Tensor) -> torch.Tensor:
        calls["RMSNorm", inp.dim()] += 1
        return torch.nn.functional.rms_norm(inp, inp.shape[-1:], self.weight, self.eps)


class LayerNorm(ExtraState):
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the stand-in has RMSNorm only")
