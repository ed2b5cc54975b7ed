"""Seconds of work on the device, by CUDA events: warmed up, the cache emptied before each, the median."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Work = Callable[[], Any]
AHEAD_CYCLES = 2_000_000
"""About a millisecond of a card whose clock is near 2 GHz."""


def seconds_of(stages: Sequence[Work], prepare: Work, *, small: bool, repeats: int = 10) -> list[float]:
    """Return, for each stage, the median seconds from the start to its end; the stages follow each other.

    prepare: is called before each repeat and not counted, as the emptying of the card's cache is not, nor a
    wait of about a millisecond of the device. The host is ahead by that time: launches are not counted, as
    long as it stays ahead.
    """
    measured = [_once(stages, prepare) for _ in range(2 if small else 3 + repeats)]
    kept = measured[-1 if small else -repeats :]
    return [statistics.median(one[stage] for one in kept) for stage in range(len(stages))]


def _once(stages: Sequence[Work], prepare: Work) -> list[float]:
    prepare()
    if not torch.cuda.is_initialized():
        start, ends = time.perf_counter(), []
        for stage in stages:
            stage()
            ends.append(time.perf_counter() - start)
        return ends
    _cache().zero_()
    # Zeroing takes an H100 65 µs (estimated), less than Python needs before a first Triton kernel starts.
    torch.cuda._sleep(AHEAD_CYCLES)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
    events[0].record()
    for stage, event in zip(stages, events[1:], strict=True):
        stage()
        event.record()
    torch.cuda.synchronize()
    return [events[0].elapsed_time(event) / 1000 for event in events[1:]]


@functools.cache
def _cache() -> torch.Tensor:
    """Memory that fills the second-level cache several times over (50 MB of an H100's)."""
    return torch.empty(4 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device="cuda")


def copy_rate(source: torch.Tensor, target: torch.Tensor, *, small: bool) -> float:
    """Return the bytes per second of a copy, which reads and writes each byte once."""
    (seconds,) = seconds_of([lambda: target.copy_(source)], lambda: None, small=small)
    return 2 * source.numel() * source.element_size() / seconds
