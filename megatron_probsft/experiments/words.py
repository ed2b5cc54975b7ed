"""Turns flags into the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def words_of(flags: Mapping[str, Any], *, absolute: bool = False) -> list[str]:
    """Return the command line's words for flags, whose names have underscores here.

    True and False become --name and --no-name, a list becomes several words, None becomes nothing. Paths
    inside the current folder are written relative to it, unless they are to stay `absolute`.
    """
    words: list[str] = []
    for name, value in flags.items():
        dashed = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{dashed}", *(str(one) if absolute else shown_path(one) for one in values)]
    return words


def shown_path(value: Any) -> str:
    """Return the value as text; a path inside the current folder, where commands run, is relative to it."""
    if isinstance(value, Path) and value.is_relative_to(Path.cwd()):
        return str(value.relative_to(Path.cwd()))
    return str(value)
