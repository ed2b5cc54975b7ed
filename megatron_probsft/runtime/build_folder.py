"""Each process builds in a folder of its own beside the result; the folder goes even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".building-"


@contextlib.contextmanager
def build_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder in `parent`, removed at the end; folders of processes that died are removed first.

    Each folder holds a file that its process has locked. Unlike a process number, the lock means the same on
    all machines that share the folder, and it goes with the process.

    Raises:
        OSError: `parent` cannot be written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.glob(f"{_PREFIX}*"):
        _remove_if_dead(other)
    while True:
        folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:
            continue  # another process took it for a dead one's
        with contextlib.suppress(OSError):  # a file system without locks: nothing there is taken for dead
            fcntl.lockf(lock, fcntl.LOCK_EX)
        if (folder / "lock").exists():
            break
        lock.close()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _remove_if_dead(folder: Path) -> None:
    with contextlib.suppress(OSError):  # locked by its process; or another one was faster
        if not (folder / "lock").exists():
            folder.rmdir()  # only where it is empty still
            return
        with (folder / "lock").open("r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
