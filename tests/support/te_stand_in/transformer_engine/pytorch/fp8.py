"""FP8's contexts: they are remembered, and layers check their shapes under them; numbers stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from transformer_engine.stand_in import calls


class FP8GlobalStateManager:
    FP8_ENABLED: bool = False
    recipe: Any = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.FP8_ENABLED

    @classmethod
    def get_fp8_recipe(cls) -> Any:
        return cls.recipe

    @classmethod
    def reset(cls) -> None:
        cls.FP8_ENABLED, cls.recipe = False, None


@contextlib.contextmanager
def fp8_autocast(
    enabled: bool = True,
    calibrating: bool = False,
    fp8_recipe: Any = None,
    fp8_group: Any = None,
    _graph: bool = False,
) -> Iterator[None]:
    manager = FP8GlobalStateManager
    before = manager.FP8_ENABLED, manager.recipe
    manager.FP8_ENABLED, manager.recipe = enabled, fp8_recipe
    if enabled:
        calls["fp8_autocast", type(fp8_recipe).__name__] += 1
    try:
        yield
    finally:
        manager.FP8_ENABLED, manager.recipe = before


@contextlib.contextmanager
def fp8_model_init(enabled: bool = True, **_options: Any) -> Iterator[None]:
    assert not enabled, "the stand-in keeps no weights in FP8"
    yield


def check_shapes(*tensors: torch.Tensor) -> None:
    """FP8's products want rows by eights and columns by sixteens."""
    if not FP8GlobalStateManager.is_fp8_enabled():
        return
    for tensor in tensors:
        rows = tensor.numel() // tensor.shape[-1]
        assert rows % 8 == 0, f"FP8 execution requires the product of all dimensions but the last: {rows}"
        assert tensor.shape[-1] % 16 == 0, f"FP8 execution requires a last dimension: {tensor.shape[-1]}"
