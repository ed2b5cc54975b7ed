"""Where tables and lines for people go."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

_WIDTH_OF_FILES = 130  # columns, where there is no terminal that has a width


def console(width: int = _WIDTH_OF_FILES, **more: Any) -> Console:
    """A rich console on standard output: as wide as the terminal, or `width` columns into a file or pipe."""
    return Console(width=None if sys.stdout.isatty() else width, **more)
