"""Makes the figures of docs/scaling.md: the drawing, and the tables between the page's markers.

    python -m benchmarks.scaling.draw [--search]

--search looks for all layouts anew, which takes a minute or two; without it the committed ones are drawn.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scaling import published
from benchmarks.scaling.points import BATCHES, GPUS, NAMES, Point, read_points, write_points

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "scaling.md", DOCS / "scaling.svg"
_COLOURS = dict(zip(NAMES, ("#2e7d32", "#1f6fb2", "#b3541e"), strict=True))
_WIDTH, _HEIGHT, _TOP, _LEFT = 960, 430, 62, 74
_PANEL = 396
_RANGE = (2e4, 6e7)  # tokens per second


def main() -> None:
    if "--search" in sys.argv[1:]:
        write_points()
    points = read_points()
    PICTURE.write_text(svg(points), encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), points), encoding="utf-8")


def svg(points: list[Point]) -> str:
    """Return the drawing: tokens per second against GPUs, a panel for each batch."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "  <title>Estimated tokens per second against GPUs</title>",
        f'  <rect x="1" y="1" width="{_WIDTH - 2}" height="{_HEIGHT - 2}" rx="14" fill="#f6f8fb" '
        'stroke="#9aa7b8"/>',
        f'  <text x="{_LEFT - 50}" y="26" fill="#33415c" font-weight="600">tokens per second, '
        "H100 80 GB, bf16: estimated, not measured</text>",
    ]
    for number, samples in enumerate(BATCHES):
        lines += _panel([point for point in points if point.samples == samples], samples, number)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(points: list[Point], samples: int, number: int) -> Iterator[str]:
    left = _LEFT + number * (_PANEL + 56)
    bottom = _HEIGHT - 46
    yield f'  <text x="{left}" y="{_TOP - 12}" fill="#5a6b82">{samples:,} samples per step</text>'
    for power in range(5, 8):
        y = _y(10.0**power)
        label = {5: "100 k", 6: "1 M", 7: "10 M"}[power]
        yield f'  <path d="M{left} {y}H{left + _PANEL}" stroke="#cfd8e3"/>'
        yield f'  <text x="{left - 6}" y="{y + 4}" fill="#5a6b82" text-anchor="end">{label}</text>'
    for gpus in GPUS:
        x = _x(gpus, left)
        yield f'  <path d="M{x} {_TOP}V{bottom}" stroke="#e3e9f0"/>'
        yield f'  <text x="{x}" y="{bottom + 18}" fill="#5a6b82" text-anchor="middle">{gpus:,}</text>'
    middle = left + _PANEL // 2
    yield f'  <text x="{middle}" y="{bottom + 36}" fill="#5a6b82" text-anchor="middle">GPUs</text>'
    for model in NAMES:
        line = [point for point in points if point.model == model]
        first = line[0]
        ideal = first.tokens_per_second / first.gpus * GPUS[-1]
        colour = _COLOURS[model]
        yield (
            f'  <path d="M{_x(first.gpus, left)} {_y(first.tokens_per_second)}L{_x(GPUS[-1], left)} '
            f'{_y(ideal)}" stroke="{colour}" stroke-dasharray="2 4" fill="none" opacity="0.6"/>'
        )
        path = "L".join(f"{_x(point.gpus, left)} {_y(point.tokens_per_second)}" for point in line)
        yield f'  <path d="M{path}" stroke="{colour}" stroke-width="2.5" fill="none"/>'
        for point in line:
            x, y = _x(point.gpus, left), _y(point.tokens_per_second)
            yield f'  <circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
        yield (
            f'  <text x="{_x(first.gpus, left) + 8}" y="{_y(first.tokens_per_second) + 18}" '
            f'fill="{colour}" font-weight="600">{model}</text>'
        )


def _x(gpus: int, left: float) -> float:
    share = math.log2(gpus / GPUS[0]) / math.log2(GPUS[-1] / GPUS[0])
    return round(left + 14 + share * (_PANEL - 40), 1)


def _y(tokens: float) -> float:
    low, high = (math.log10(end) for end in _RANGE)
    share = (math.log10(tokens) - low) / (high - low)
    return round(_HEIGHT - 46 - share * (_HEIGHT - 46 - _TOP), 1)


def with_tables(page: str, points: list[Point]) -> str:
    """Return the page with its tables made anew, each between two markers."""
    tables = {"published": published.table()}
    tables |= {f"{samples} samples": layouts(points, samples) for samples in BATCHES}
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n)(?:\|.*\n)*")
        assert pattern.search(page), f"{PAGE.name} has no place for the table {name!r}"
        page = pattern.sub(lambda found, table=table: found[1] + table, page)
    return page


def layouts(points: list[Point], samples: int) -> str:
    """Return the layouts of a batch as Markdown."""
    lines = [
        "| model | GPUs | layout | packs per rank | GiB | s per step | tokens/s | per GPU | largest loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        if point.samples == samples:
            per_gpu = point.tokens_per_second / point.gpus
            lines.append(
                f"| {point.model} | {point.gpus:,} | {_layout(point)} | {point.micro_batches} "
                f"| {point.memory_gib:.0f} | {point.seconds:.3g} | {point.tokens_per_second:,.0f} "
                f"| {per_gpu:,.0f} | {_largest_loss(point)} |"
            )
    return "\n".join(lines) + "\n"


def _layout(point: Point) -> str:
    short = {
        "tensor_model_parallel_size": "TP", "pipeline_model_parallel_size": "PP",
        "num_virtual_stages_per_pipeline_rank": "VPP", "context_parallel_size": "CP",
    }  # fmt: skip
    sizes = [f"{name} {point.settings[key]}" for key, name in short.items() if key in point.settings]
    if "recompute_granularity" in point.settings:
        sizes.append("recompute")
    return " ".join([*sizes, f"DP {point.data_parallel_size}"])


def _largest_loss(point: Point) -> str:
    """Return the part that takes most beside the products, attention and the memory-bound kernels."""
    useful = ("linear", "attention", "memory_bound", "head")
    name, seconds = max(
        ((name, seconds) for name, seconds in point.parts.items() if name not in useful),
        key=lambda part: part[1],
    )
    return f"{name.replace('_', ' ')} {seconds / point.seconds:.0%}"


if __name__ == "__main__":
    main()
