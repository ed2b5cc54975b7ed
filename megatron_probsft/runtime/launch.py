"""A process knows its place by what torchrun, or another launcher, puts into the environment."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Return the global rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """Return the number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
