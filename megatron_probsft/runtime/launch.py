"""Which process this is, by what torchrun (or another launcher) put into the environment."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """The global rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """The number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
