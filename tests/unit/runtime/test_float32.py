"""Products of float32 are exact within the context, however torch was told otherwise, and as before after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from megatron_probsft.runtime.device import exact_float32_products

_BACKENDS: Any = torch.backends
CUDA, CPU = _BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul
ASKED: dict[str, Callable[[], None]] = {
    "as torch begins": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's newer name": lambda: setattr(CUDA, "fp32_precision", "tf32"),
}


@pytest.fixture
def as_before() -> Iterator[None]:
    before = CUDA.fp32_precision, CPU.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision, CPU.fp32_precision = before


@pytest.mark.parametrize("asked", ASKED)
def test_tf32_is_off_within(asked: str, as_before: None) -> None:
    ASKED[asked]()
    before = CUDA.fp32_precision, CPU.fp32_precision
    with exact_float32_products():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not CUDA.allow_tf32
    assert (CUDA.fp32_precision, CPU.fp32_precision) == before
