"""Files that hold something else than they should, folders in their place, places that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.continuum import run as continuum
from examples.quickstart import run as quickstart
from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint
from megatron_probsft.evaluation.model_files import load_model_files
from megatron_probsft.evaluation.unfinished import Unfinished, settings_of
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.reporting.report import write_report
from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.training.log.metrics_file import drop_records_after, read_records
from tests.support.report_runs import write_score, write_training
from tests.support.tiny_models import save_tiny_model

DAMAGE: dict[str, bytes] = {
    "empty": b"", "binary": bytes(range(256)), "cut": b'{"a": "b', "list": b"[1]", "number": b"3",
    "null": b"null", "text": b'"abc"',
}  # fmt: skip


def _message(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model", layers=1)


@pytest.mark.parametrize("damage", DAMAGE)
def test_config_and_generation_config(damage: str, model: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        file, before = model / name, (model / name).read_bytes()
        try:
            file.write_bytes(DAMAGE[damage])
            assert str(file) in _message(lambda: load_model_files(model))
            if name == "config.json":
                assert str(file) in _message(lambda: read_hf_model(model))
        finally:
            file.write_bytes(before)
    load_model_files(model)


@pytest.mark.parametrize("eos", [["<eos>"], "<eos>", 1.5, {"a": 1}, [[1]]])
def test_an_eos_that_is_no_id(eos: Any, model: Path) -> None:
    file = model / "generation_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({"eos_token_id": eos}))
        assert "eos_token_id must be a token's id or a list of them" in _message(
            lambda: load_model_files(model)
        )
    finally:
        file.write_text(before)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["manifest.json", "metadata.json"])
def test_files_of_a_checkpoint(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000003"
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    (folder / name).write_bytes(DAMAGE[damage])
    assert str(folder / name) in _message(lambda: find_checkpoint(tmp_path, 3))


def test_a_pointer_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe")
    assert "iteration.txt is not text in UTF-8" in _message(lambda: find_checkpoint(tmp_path))


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("empty", "cut")])
def test_an_unfinished_evaluation(damage: str, tmp_path: Path) -> None:
    (tmp_path / "unfinished.jsonl").write_bytes(DAMAGE[damage].replace(b"\n", b"") + b"\n")
    assert "line 1 is not what an evaluation writes" in _message(lambda: Unfinished(tmp_path, {"a": 1}))
    assert "line 1 is not what an evaluation writes" in _message(lambda: settings_of(tmp_path))


RUN_FILES = ["megatron/train_config.yaml", "megatron/summary.json", "score/summary.json"]


@pytest.mark.parametrize("damage", ["binary", "list", "number", "text"])
@pytest.mark.parametrize("name", [*RUN_FILES, "megatron/metrics.jsonl", "score/generations.jsonl"])
def test_the_files_of_a_reported_run(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_training(folder / "megatron", "p")
    write_score(folder / "score", {"a": [1, 0], "b": [1]})
    (folder / name).write_bytes(DAMAGE[damage] + b"\n")
    assert str(folder / name) in _message(lambda: write_report([folder], tmp_path / "report"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("megatron/metrics.jsonl", {"kind": "train"}, "line 1 is not what a run writes: it has no 'it"),
        ("megatron/metrics.jsonl", {"kind": "train", "iteration": 1}, "it has no 'loss'"),
        ("megatron/metrics.jsonl", {"kind": 3, "iteration": 1}, "'kind' is '3'"),
        ("score/summary.json", {"task": 3}, "'task' is '3'"),
        ("score/summary.json", {"benchmarks": [1]}, "'benchmarks' is '[1]'"),
        ("score/summary.json", {"benchmarks": {"a": 1}}, "benchmark a must be a JSON object, got int"),
        ("score/generations.jsonl", {"sample": 0}, "line 1 is not what a run writes: it has no 'index'"),
        ("megatron/train_config.yaml", {"objective": 3}, "'objective' is '3'"),
    ],
)  # fmt: skip
def test_other_content_in_a_reported_run(name: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_training(folder / "megatron", "p")
    write_score(folder / "score", {"a": [1, 0]})
    (folder / name).write_text(json.dumps(content) + "\n")
    assert message in _message(lambda: write_report([folder], tmp_path / "report"))


def test_records_among_rubbish(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    good = [b'{"iteration": 1}\n', b'{"iteration": 2}\n']
    file.write_bytes(good[0] + b'\xff\xfe\n[1]\n3\n{"a": 1}\n' + good[1] + b'{"iteration": 3')
    assert read_records(tmp_path) == [{"iteration": 1}, {"iteration": 2}]
    drop_records_after(tmp_path, 1)
    assert file.read_bytes() == good[0]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "file/far/below"):
        message = _message(lambda place=place: check_writable(tmp_path / place, "--output"))
        assert message == f"--output {tmp_path / place}: {tmp_path / 'file'} is no folder"
    if Path("/proc/self").exists():
        assert "--output /proc/new cannot be written" in _message(
            lambda: check_writable(Path("/proc/new"), "--output")
        )
    check_writable(tmp_path / "new" / "folder", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


RECIPE = {
    "output": "runs/x", "model_save_name": "m", "trainer_objective_trans": ["p"], "seed": [1], "all": {},
    "domains": {"math": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": 3}, "domains must be dict, got 3"),
        ({"domains": {"math": 3}}, "domains: math must hold flags and values, got 3"),
        ({"domains": {"maths": {}}}, "domains has 'maths': use some of math, medical, figfont"),
        ({"domains": {}}, "names no domains"),
        ({"all": None}, "all must be dict, got None"),
        ({"output": 3}, "output must be str, got 3"),
        ({"seed": "x"}, "seed must be int or list, got 'x'"),
        ({"more": 1}, "must have the keys all, domains, model_save_name"),
    ],
)
def test_recipes_of_the_continuum(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(RECIPE))  # which is YAML, too
    continuum.read_recipe(file)
    file.write_text(json.dumps(RECIPE | change))
    assert message in _message(lambda: continuum.read_recipe(file))
    for name in ("list", "binary"):
        file.write_bytes(DAMAGE[name])
        assert f"--recipe {file}" in _message(lambda: continuum.read_recipe(file))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--data-parallel-size", "-1"], "--data-parallel-size must be at least 1, got -1"),
        (["--objectives", "p", "p"], "--objectives names one more than once: p p"),
        (["--output", "{0}/file"], "--output {0}/file is no folder"),
        (["--output", "{0}/file/x"], "--output {0}/file: {0}/file is no folder"),
    ],
)
def test_the_quick_start(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    argv = [flag.format(tmp_path) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["run.py", "--model", "nowhere", "--output", str(tmp_path / "q"), *argv])
    arguments = quickstart._arguments()
    assert _message(lambda: quickstart.QuickStart(arguments).run()) == message.format(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a mistake"), 2, "error: a mistake\n"),
        (PermissionError(13, "Permission denied", "/some/file"), 2, "error: /some/file: Permission denied\n"),
        (OSError(28, "No space left on device", b"/some/file"), 2, "error: /some/file: No space left on dev"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_command_ends(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == status
    assert capsys.readouterr().err.startswith(line)


def test_what_is_no_mistake_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="of nothing"), one_line_errors():
        raise OSError("of nothing")
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0


def test_a_reader_that_goes_away() -> None:
    program = (
        "from megatron_probsft.runtime.errors import one_line_errors\n"
        "with one_line_errors():\n    for _ in range(100000): print('line')\n"
    )
    command = f'"{sys.executable}" -c "{program}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout == "line\n"
    assert done.stderr == ""
