"""Turns folders of runs into a folder with their report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.reporting.load import load_runs
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.progress import tqdm

_FIGURES = "figures"


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write report.html, report.md with figures/, and report.json into `output`. Returns the page's path.

    Raises:
        UserError: a run cannot be read (`load_runs`), or the folder cannot be written.
    """
    read = load_runs(runs)
    # Here: torch and matplotlib take seconds to import, and what cannot be read is told without them.
    from megatron_probsft.reporting import html, markdown
    from megatron_probsft.reporting.content import build
    from megatron_probsft.reporting.figures import draw

    figures = output / _FIGURES
    try:
        figures.mkdir(parents=True, exist_ok=True)
        content = build(read)
        panels = draw(content)
        for old in figures.glob("*.png"):
            old.unlink()
        for panel in tqdm(panels, desc="plots", disable=None, leave=False):
            panel.write(figures)
        write_whole(output / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_whole(output / "report.md", markdown.render(content, panels, _FIGURES))
        write_whole(output / "report.html", html.render(content, panels))
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    return output / "report.html"
