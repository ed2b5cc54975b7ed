"""Transformer Engine is imported where there is a GPU only, and one that fails is told in a line.

Where it can be imported, Megatron-Core takes its optimizer, which works on CUDA tensors only (Megatron-Core
0.19.2, optimizer/__init__.py:13). And where its parts do not fit each other, or a library of the system is
missing, it raises FileNotFoundError, AssertionError, RuntimeError or OSError (Transformer Engine 2.5 to 2.18,
common/__init__.py), of which Megatron-Core expects none (extensions/transformer_engine.py:60).
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator

from megatron_probsft.runtime.device import has_gpu
from megatron_probsft.runtime.errors import UserError

_NAME = "transformer_engine"


@contextlib.contextmanager
def guarded_import() -> Iterator[None]:
    """Import Megatron-Core within this context. Without a GPU the process has no Transformer Engine then.

    Raises:
        UserError: it is installed, but broken.
    """
    if not has_gpu():
        for name in (_NAME, "apex"):  # whose optimizers, which Megatron-Core would take, are CUDA's
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        yield
    except Exception as error:
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(name.partition(".")[0] == _NAME for name in modules):
            raise
        raise broken_transformer_engine(error) from None


def broken_transformer_engine(error: Exception) -> UserError:
    """The line that says why Transformer Engine cannot be imported, and what would be right."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(
        f"Transformer Engine is installed, but cannot be imported ({reason[:300]}): install one that fits "
        "this torch and CUDA, or uninstall it, and local layers serve"
    )
