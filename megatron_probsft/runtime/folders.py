"""Folders and files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.errors import UserError

_PIECE = 2**18


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give the folder `target.part` to write into; at the end, all of it on the disk, it becomes the target.

    The part that an interrupted run left is removed first; after an error nothing is left.

    Raises:
        UserError: the target exists, or a file could not be written.
    """
    check_is_new(target)
    part = part_of(target)
    try:
        start_part(target)
        yield part
        publish_part(target)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_of(target: Path) -> Path:
    """Return the path at which a folder or file is written before it gets its name."""
    return target.with_name(target.name + ".part")


def start_part(target: Path) -> None:
    """Make an empty `part_of(target)`."""
    shutil.rmtree(part_of(target), ignore_errors=True)
    part_of(target).mkdir(parents=True)


def publish_part(target: Path) -> None:
    """Give `part_of(target)`, all of it written, its name, and wait until that is on the disk."""
    part = part_of(target)
    for path in [*part.rglob("*"), part]:
        to_disk(path)
    part.rename(target)
    to_disk(target.parent)


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that a reader finds the one that was there or the new one, never a part."""
    part = part_of(file)
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def check_is_new(target: Path) -> None:
    """Raise UserError where there is something at `target`."""
    if target.exists():
        raise UserError(f"{target} exists: choose another folder, or remove it")


def check_writable(target: Path, name: str) -> None:
    """Raise UserError where the folder `target` cannot be written, before the work whose results go there.

    Nothing is left of the trial. The message begins with `name`, the flag that gives the folder.
    """
    try:
        there = next(folder for folder in [target, *target.absolute().parents] if os.path.lexists(folder))
        if not there.is_dir():
            raise UserError(f"{name} {target}: {there} is no folder")
        with tempfile.TemporaryDirectory(dir=there, prefix=".probsft-"):
            pass
    except OSError as error:
        raise UserError(f"{name} {target} cannot be written: {error.strerror}") from None


def check_space(target: Path, needed: int) -> None:
    """Raise UserError where the target's disk has fewer bytes free than `needed`."""
    there = next(folder for folder in [target, *target.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{target} needs {needed / 1e9:.2f} GB, but {there} has {free / 1e9:.2f} GB free")


def pieces(content: Any) -> Iterator[memoryview]:
    """Give a buffer in pieces of 256 KiB: written so, new files grow up to four times as fast.

    For large writes Linux takes large runs of pages, which a virtual machine may have to get from its host.
    """
    whole = memoryview(content).cast("B")
    for start in range(0, len(whole), _PIECE):
        yield whole[start : start + _PIECE]


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
