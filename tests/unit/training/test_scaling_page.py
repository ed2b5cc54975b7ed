"""docs/scaling.md and its drawing are what the time model gives; its search is repeated in part."""

from __future__ import annotations

import pytest

from benchmarks.scaling.draw import PAGE, PICTURE, svg, with_tables
from benchmarks.scaling.points import BATCHES, NAMES, Point, again, read_points, searched

STALE = "run: python -m benchmarks.scaling.draw --search"
POINTS = read_points()


def test_the_tables_and_the_drawing_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page, POINTS), STALE
    assert PICTURE.read_text(encoding="utf-8") == svg(POINTS), STALE


def test_every_batch_and_model_is_drawn() -> None:
    for samples in BATCHES:
        for model in NAMES:
            line = [point for point in POINTS if (point.model, point.samples) == (model, samples)]
            assert [point.gpus for point in line] == sorted({point.gpus for point in line})
            assert line[-1].gpus == 1024
            # More GPUs with the same batch are never much faster than in proportion.
            per_gpu = [point.tokens_per_second / point.gpus for point in line]
            assert max(per_gpu) <= 1.1 * per_gpu[0]


@pytest.mark.parametrize("model", NAMES)
def test_the_committed_figures_are_the_time_models(model: str) -> None:
    for point in POINTS:
        if point.model == model and (point.samples == 256 or point.gpus == 1024):
            _is_alike(again(point), point)


def test_the_search_finds_the_committed_layout() -> None:
    committed = next(point for point in POINTS if (point.model, point.gpus) == ("Qwen2.5-7B", 32))
    found = searched(committed.model, committed.gpus, committed.samples)
    assert found is not None
    assert found.settings == committed.settings
    _is_alike(found, committed)


def _is_alike(found: Point, committed: Point) -> None:
    alike = found.tokens_per_second == pytest.approx(committed.tokens_per_second, rel=0.01)
    assert alike, f"{committed.model} on {committed.gpus}: {STALE}"
    assert found.memory_gib == pytest.approx(committed.memory_gib, abs=0.5), STALE
