"""Names runs by the parts of their paths that tell them apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_RUN_FOLDER = "megatron"  # its name in every experiment: it says nothing about the run


def shortest_names(folders: Sequence[Path]) -> list[str]:
    """Return one name per folder, without the parts that all share; one alone is named by its last part."""
    paths = [folder.parent if folder.name == _RUN_FOLDER else folder for folder in folders]
    if len(paths) == 1:
        return [paths[0].name]
    parts = [list(path.parts) for path in paths]
    shared = len(os.path.commonprefix(parts))  # type: ignore[type-var]  # of lists too
    parts = [one[min(shared, len(one) - 1) :] for one in parts]
    if len({len(one) for one in parts}) == 1:
        differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
        parts = [[part for part, kept in zip(one, differs, strict=True) if kept] for one in parts]
    return ["/".join(one) for one in parts]
