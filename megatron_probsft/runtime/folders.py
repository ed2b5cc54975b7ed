"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_probsft.runtime.errors import UserError


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Write into `target.part`, which gets the target's name at the end, all of it on the disk for good.

    What an interrupted run left under that name is removed first; after an error nothing is left.

    Raises:
        UserError: the target exists, or a file could not be written.
    """
    if target.exists():
        raise UserError(f"{target} exists: choose another folder, or remove it")
    part = target.with_name(target.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for path in [*part.rglob("*"), part]:
            to_disk(path)
        part.rename(target)
        to_disk(target.parent)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
