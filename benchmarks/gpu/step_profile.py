"""One training step under torch's profiler: the kernels that take most time, and the gaps between kernels.

Leaves step_trace.json.gz (chrome://tracing, perfetto.dev) and step_kernels.txt beside the results.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.place import Place

KERNELS = 15


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    return {"one step of this trainer": functools.partial(_profile, place)}


def _profile(place: Place) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.gpu.kit.whole_step import WholeStep

    with tempfile.TemporaryDirectory(prefix="gpu_kit_") as folder:
        whole = WholeStep(place, Path(folder))
        batches = [whole.batches.training_step(step * whole.sizes.batch) for step in range(3)]
        for batch in batches[:2]:
            whole.step(batch)
        activities = [ProfilerActivity.CPU, *([] if place.small else [ProfilerActivity.CUDA])]
        with profile(activities=activities) as profiled:
            whole.step(batches[2])
            if not place.small:
                torch.cuda.synchronize()
    profiled.export_chrome_trace(str(place.output / "step_trace.json.gz"))
    events = profiled.events() or []
    spans = [(e.name, e.time_range.start, e.time_range.end) for e in events if _on_device(e, place)]
    totals: dict[str, list[float]] = {}
    for name, start, end in spans:
        totals.setdefault(name, []).append(end - start)
    top = sorted(totals.items(), key=lambda item: -sum(item[1]))[:KERNELS]
    whole_span, busy = busy_time((start, end) for _, start, end in spans)
    lines = [f"{'ms':>9} {'calls':>6}  kernel"]
    lines += [f"{sum(times) / 1e3:9.3f} {len(times):6d}  {name[:150]}" for name, times in top]
    idle = 1 - busy / whole_span
    gaps = f"{whole_span / 1e3:.1f} ms from the first kernel to the last, no kernel in {idle:.1%} of it"
    (place.output / "step_kernels.txt").write_text("\n".join([*lines, gaps]) + "\n")
    first = "; ".join(f"{name[:40]} {sum(times) / 1e3:.1f} ms" for name, times in top[:3])
    return {
        "kernels": [{"name": name, "seconds": sum(times) / 1e6, "calls": len(times)} for name, times in top],
        "span_seconds": whole_span / 1e6, "busy_seconds": busy / 1e6,
        "result": f"{gaps}; most time: {first}; step_kernels.txt, step_trace.json.gz",
    }  # fmt: skip


def _on_device(event: Any, place: Place) -> bool:
    """Kernels and copies on the device; on the CPU torch's operators, whose times contain each other's."""
    if place.small:
        return True
    # Ranges that a program names are drawn on the device too, over the gaps.
    return str(event.device_type).endswith("CUDA") and not getattr(event, "is_user_annotation", False)


def busy_time(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return (the time from the first start to the last end, the part of it that some span covers)."""
    first, last, busy = None, 0.0, 0.0
    for start, end in sorted(spans):
        if first is None:
            first = last = start
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    return (last - first if first is not None else 0.0), busy
