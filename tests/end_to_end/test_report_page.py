"""The report's page as a person sees it, in headless Chromium."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_probsft.reporting.report import write_report
from tests.support import browser
from tests.support.report_runs import write_score, write_training
from tests.support.sizes import rows

pytestmark = pytest.mark.skipif(
    browser.executable() is None, reason=f"no browser on PATH: {', '.join(browser.NAMES)} (make browser)"
)

# Sizes of all drawn things, and the smallest text, inside the scaled plots too, in pixels on the screen.
PLOTS = """
[...document.querySelectorAll('svg, img')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])
"""
DRAWN = "[...document.querySelectorAll('svg')].map(e => e.querySelectorAll('path, use').length)"
SMALLEST_TEXT = """
(() => {
  document.querySelectorAll('details').forEach(e => e.open = true);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let smallest = [Infinity, ''];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest('style, defs')) continue;
    const scale = element.getScreenCTM ? element.getScreenCTM().a : 1;
    const size = parseFloat(getComputedStyle(element).fontSize) * scale;
    if (size < smallest[0]) smallest = [size, texts.currentNode.data];
  }
  return smallest;
})()
"""
# Texts of one plot that lie on each other.
OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([a, r], i) => boxes.slice(i + 1).filter(([b, q]) =>
    r.left < q.right - 1 && q.left < r.right - 1 && r.top < q.bottom - 3 && q.top < r.bottom - 3
  ).map(([b]) => a + ' | ' + b));
})
"""
OUTSIDE = """
[...document.querySelectorAll('svg text')].filter(e => {
  const r = e.getBoundingClientRect(), q = e.closest('svg').getBoundingClientRect();
  return r.left < q.left - 1 || r.right > q.right + 1 || r.top < q.top - 1 || r.bottom > q.bottom + 1;
}).map(e => e.textContent)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    hostile = "<script>document.title = 'taken'; fetch('http://127.0.0.1:9/x')</script>" + "x" * 3000
    write_score(root / "base" / "score", {"math500": [0, 1, 0, 0], "minerva_math": [0, 0, 1]}, hostile)
    for index, objective in enumerate(("original", "GeneralFamily-10", "OnlyTopP-0.2")):
        run = root / f"{objective}-seed{index}"
        write_training(run / "megatron", objective, nll=1.2 + 0.2 * index, lr=1e-4 * (index + 1))
        write_score(run / "score", {"math500": [1, 0, 1, index], "minerva_math": [index % 2, 1, 1]})
    return write_report([root / "base", *sorted(root.glob("*-seed*"))], root / "report")


@pytest.mark.parametrize(
    ("scheme", "width"),
    rows(itertools.product(["light", "dark"], [1280, 400]), fast=[], rare=[("light", 400), ("dark", 1280)]),
)
def test_page_is_drawn_and_readable(page: Path, width: int, scheme: str, tmp_path: Path) -> None:
    with browser.Browser(tmp_path / "profile") as shown:
        shown.show(page, width, 900, scheme)
        assert shown.evaluate("innerWidth") == width
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("document.title") == "Report: 4 runs"
        plots = shown.evaluate(PLOTS.strip())
        assert len(plots) == 3 + 6 + 3 + 2  # scores with their average, curves, histograms, gradient mass
        assert all(300 < w <= width and h > 60 for w, h in plots)
        assert min(shown.evaluate(DRAWN)) > 5
        size, text = shown.evaluate(SMALLEST_TEXT)
        assert size >= 11, text
        assert shown.evaluate(OVERLAPS.strip()) == []
        assert shown.evaluate(OUTSIDE.strip()) == []
        image = shown.screenshot(tmp_path / "page.png")
        assert shown.requests == [page.as_uri()]
        assert shown.problems == []
    pixels = np.asarray(Image.open(image).convert("L"), float)
    assert pixels.shape[1] == width
    assert pixels.std() > 10
    assert (pixels.mean() > 128) == (scheme == "light")
