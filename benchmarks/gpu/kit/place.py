"""The place that a row runs at: a GPU with the real shapes, or the CPU with tiny ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


class NotHereError(Exception):
    """The row needs something that this machine does not have; its text says what."""


class WrongError(Exception):
    """The numbers are not right; its text says which."""


@dataclass(frozen=True)
class Place:
    """Where rows run, and with which sizes."""

    small: bool
    """Tiny shapes on the CPU, for machines without a GPU and for the tests."""
    output: Path
    """The folder of the results, where a row may leave files."""

    @property
    def device(self) -> str:
        return "cpu" if self.small else "cuda"


def hide(*modules: str) -> None:
    """Let this process believe that libraries are not installed, before Megatron-Core looks for them."""
    if "megatron.core" in sys.modules:
        raise RuntimeError("Megatron-Core is imported already, and has looked for libraries")
    for module in modules:
        sys.modules[module] = None  # type: ignore[assignment]  # `import` raises, `find_spec` finds nothing
