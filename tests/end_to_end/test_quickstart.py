"""The quick start in small: real torchrun on TP 2 × PP 2, conversion, real vLLM, table and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]


def test_from_a_model_to_scores(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", heads=4, groups=2, head_dim=32)
    output = tmp_path / "quickstart"
    command = [
        sys.executable, "examples/quickstart/run.py", "--model", str(model), "--objectives", "original", "p",
        "--steps", "3", "--heldout", "12", "--tensor-model-parallel-size", "2",
        "--pipeline-model-parallel-size", "2", "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((output / "summary.json").read_text())
    base, original, p = summary["rows"]
    assert [row["name"] for row in summary["rows"]] == ["base", "original", "p"]
    for row in summary["rows"]:
        low, high = row["accuracy_ci95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert row["n"] == 12
        assert row["seconds"] > 0
    assert original["heldout_nll"] < base["heldout_nll"]
    assert p["heldout_nll"] != original["heldout_nll"]
    assert len(summary["commands"]) == 7
    assert (output / "summary.png").stat().st_size > 10_000
    generations = (output / "p" / "score" / "generations.jsonl").read_text().splitlines()
    assert len(generations) == 12
    assert "held-out NLL" in done.stdout


@pytest.mark.parametrize("flags", [["--objectives", "orginal"], ["--model", "nowhere/at/all"]])
def test_refusals(flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "examples/quickstart/run.py", "--output", str(tmp_path / "out"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
