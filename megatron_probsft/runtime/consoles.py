"""Tables and lines for people go to a console of one width, whatever command prints them."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

_WIDTH_OF_FILES = 130  # columns, where there is no terminal that has a width


def console(width: int = _WIDTH_OF_FILES, **more: Any) -> Console:
    """Return a rich console on standard output, as wide as the terminal, or `width` columns in a file."""
    return Console(width=None if sys.stdout.isatty() else width, **more)
