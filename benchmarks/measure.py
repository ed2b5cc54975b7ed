"""What every benchmark here needs: interleaved timing, peak memory, the machine's name, a table, JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from megatron_probsft.runtime.quiet import quiet_libraries

quiet_libraries()  # benchmarks are programs, and import Megatron-Core after this
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Run = Callable[[], Mapping[str, float]]
"""Does the work once and returns the seconds of its parts."""


def synchronize() -> None:
    """Wait for this rank's device, then for the other ranks."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def interleaved_medians(runs: Mapping[Any, Run], repeats: int) -> dict[Any, dict[str, float]]:
    """Each run once per round, after one round of warm-up, so that a noisy spell hits all of them alike."""
    times: dict[Any, dict[str, list[float]]] = {name: {} for name in runs}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            for part, seconds in run().items():
                if repeat >= 0:
                    times[name].setdefault(part, []).append(seconds)
    return {name: {part: statistics.median(t) for part, t in parts.items()} for name, parts in times.items()}


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call, over all ranks."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def peak_extra_bytes(work: Callable[[], Any]) -> int:
    """Memory that one call needs at its highest beyond what was there before (call it warm).

    CUDA: the allocator's count. CPU: the process's peak resident set, as Linux counts it.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that stayed with the process would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # peak = now
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def copy_seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    """One copy, which reads and writes each byte once."""
    return timed(lambda: target.copy_(source))


def hardware() -> dict[str, Any]:
    """Name of the device and versions, for the records."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"
    return {"hardware": device, "torch": torch.__version__, "threads_per_rank": torch.get_num_threads()}


def show(title: str, columns: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> None:
    """A table of the records: heading → format of the field of that name, e.g. `{seconds:.3f}`."""
    table = Table(title=title)
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for record in records:
        table.add_row(*(form.format_map(record) for form in columns.values()))
    Console(width=None if os.isatty(1) else 160).print(table)


def write_json(file: str | None, records: Sequence[Mapping[str, Any]]) -> None:
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(records, indent=1) + "\n")
        print(f"wrote {file}")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
