"""The GPU kit without a GPU: a row that goes wrong costs itself alone, and the parts run with tiny shapes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import head, objective, step_profile
from benchmarks.gpu.kit import children, kernels, small_kernels
from benchmarks.gpu.kit.loss_case import LossCase
from benchmarks.gpu.kit.parts import PARTS, Part, wanted_parts
from benchmarks.gpu.kit.place import NotHereError, Place, WrongError
from benchmarks.gpu.kit.report import Report
from tests.support.ranks import run_ranks
from tests.support.sizes import rows

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class _FaultyPart(Part):
    @property
    def module(self) -> str:
        return "tests.unit.benchmarks.kit_rows"


@pytest.mark.parametrize("apart", [False, True])
def test_a_row_that_goes_wrong_costs_itself_alone(
    apart: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "SLOWER", 1)
    part = _FaultyPart("correctness", 2.0, apart)
    options = {"small": True, "output": str(tmp_path), "text": ""}
    report = Report(tmp_path)
    for record in children.run_rows(part, options, time.monotonic() + 100):
        report.add(part.name, record)
    assert report.finish() == 1
    found = {
        one["row"]: (one["status"], one["result"])
        for one in json.loads((tmp_path / "results.json").read_text())
    }
    assert found == {
        "good": ("ok", "1 ms"),
        "not here": ("not here", "no such card"),
        "wrong": ("wrong", "off by 2"),
        "raises": ("failed", "ImportError: no such library"),
        "crashes": ("crashed", "killed by SIGSEGV, see log.txt"),
        "hangs": ("timed out", "stopped after 2 s"),
        "exits": ("crashed", "exit status 3, see log.txt"),
        "last": ("ok", "2 ms"),
    }
    assert "a library says something" in (tmp_path / "log.txt").read_text()
    assert "| correctness | hangs | timed out | stopped after 2 s |" in (tmp_path / "results.md").read_text()
    assert "2 ok, 1 not here, 1 wrong, 1 failed, 2 crashed, 1 timed out" in capsys.readouterr().out


def test_rows_after_the_time_is_up_say_so(tmp_path: Path) -> None:
    options = {"small": True, "output": str(tmp_path), "text": ""}
    part = _FaultyPart("correctness", 60.0, apart=True)
    late = children.run_rows(part, options, time.monotonic() - 1)
    assert list(late) == [{"row": "all of correctness", "status": "not reached"}]


def test_a_row_that_the_time_for_all_cuts_off_is_no_failure(tmp_path: Path) -> None:
    options = {"small": True, "output": str(tmp_path), "text": "hangs"}
    report = Report(tmp_path)
    (found,) = children.run_rows(_FaultyPart("correctness", 60.0), options, time.monotonic() + 1.5)
    report.add("correctness", found)
    assert found["status"] == "not reached"
    assert found["result"].startswith("the time for all was up")
    assert report.finish() == 0


def test_a_text_that_no_row_has_is_told(tmp_path: Path) -> None:
    options = {"small": True, "output": str(tmp_path), "text": "none"}
    (found,) = children.run_rows(_FaultyPart("correctness", 60.0), options, time.monotonic() + 100)
    assert found["status"] == "failed"


def test_parts_are_named() -> None:
    assert [part.name for part, _ in wanted_parts(None)] == list(PARTS)[1:]
    assert wanted_parts(["head:liger", "machine"]) == [(PARTS["head"], "liger")]
    with pytest.raises(ValueError, match="there is no part heads: use machine, correctness"):
        wanted_parts(["heads"])


def _name(part: Any) -> str:
    return part.__name__.rpartition(".")[2]


def _every_row(part: Any, output: Path) -> dict[str, str]:
    found = {}
    for name, row in part.rows(Place(small=True, output=output)).items():
        try:
            found[name] = row()["result"]
        except NotHereError as reason:
            found[name] = str(reason)
    return found


@pytest.mark.parametrize("part", rows([kernels, objective, head, step_profile], fast=[objective]), ids=_name)
def test_every_row_runs_with_tiny_shapes(part: Any, tmp_path: Path) -> None:
    """Each checks its numbers against float64 before it takes the time."""
    found = run_ranks(1, _every_row, part, tmp_path)[0]
    ours = [name for name in found if "megatron_probsft" in name or part in (kernels, step_profile)]
    assert ours
    assert not [name for name in ours if "not installed" in found[name] or "for CUDA" in found[name]]
    if part is step_profile:
        assert "aten::mm" in (tmp_path / "step_kernels.txt").read_text()
        assert (tmp_path / "step_trace.json.gz").stat().st_size > 1000


def test_a_wrong_implementation_has_no_time() -> None:
    case = LossCase(12, 61, torch.float32, "cpu", padding=3)

    def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits[:, :61].log_softmax(-1).gather(1, labels[:, None])[:, 0]

    assert case.check(log_probs, log_p=1e-5, gradient=1e-5).log_p < 1e-5
    with pytest.raises(WrongError, match="log p differs"):
        case.check(lambda *given: log_probs(*given) * 1.001, log_p=1e-5, gradient=1e-5)
    with pytest.raises(WrongError, match="log p differs"):
        case.check(lambda z, y: z.log_softmax(-1).gather(1, y[:, None])[:, 0], log_p=1e-5, gradient=1e-5)


def test_time_without_a_kernel() -> None:
    assert step_profile.busy_time([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == (7, 5)


def test_the_shapes_for_the_sanitizer() -> None:
    small_kernels.run("cpu")


@pytest.mark.parametrize("only", rows(["objective", None], fast=[], rare=[None]), ids=str)
def test_the_command(only: str | None, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--cpu-small",
        "--output",
        str(tmp_path),
        "--seconds",
        "550",
    ]
    words += ["--only", only] if only else []
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads((tmp_path / "results.json").read_text())
    assert {record["status"] for record in records} <= {"ok", "not here"}, done.stdout
    assert {record["part"] for record in records} == ({"machine", only} if only else set(PARTS))
