"""Megatron-Core decorates its fusions with `torch.compile` when it is imported; without a GPU it does not.

What: without a GPU, `torch.compile` gives functions back as they are while Megatron-Core is imported.
Why: decorating imports Inductor, which takes seconds; and on the CPU the fusions are off.
Upstream: Megatron-Core, jit.py:21 (`jit_fuser`, the decorator of forty functions); torch,
    `torch.compile`.
Versions: Megatron-Core 0.19.2, torch from 2.11 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from megatron_probsft.runtime.device import has_gpu


@contextlib.contextmanager
def without_compilation() -> Iterator[None]:
    """Import Megatron-Core within this context."""
    compile_ = torch.compile
    if not has_gpu():
        torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_


def _as_it_is(function: Any = None, **_options: Any) -> Any:
    return (lambda inner: inner) if function is None else function
