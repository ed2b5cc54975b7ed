"""Import this first in a program: the libraries that all of it needs, in two thirds of the time."""

from __future__ import annotations

import gc
from typing import Any

# Collecting garbage while thousands of modules are made finds none, and takes a sixth of the time.
gc.disable()

import torch  # noqa: E402


def _as_it_is(function: Any = None, **_options: Any) -> Any:
    return (lambda inner: inner) if function is None else function


# Megatron-Core decorates its fusions with torch.compile, which for that imports Inductor. Without CUDA they
# are off.
_compile = torch.compile
if not torch.cuda.is_available():
    torch.compile = _as_it_is  # type: ignore[assignment]
try:
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt  # noqa: F401
finally:
    torch.compile = _compile

import transformers  # noqa: E402, F401

gc.enable()
