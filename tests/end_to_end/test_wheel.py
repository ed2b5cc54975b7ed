"""The wheel, installed into an environment of its own outside the checkout, runs whatever users run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_probsft.commands.main import VERBS
from tests.support.training_runs import write_pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools builds in the folder of the sources."""
    source = tmp_path_factory.mktemp("source")
    for file in (ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("LICENSE")):
        shutil.copy(file, source)
    shutil.copytree(ROOT / "megatron_probsft", source / "megatron_probsft", ignore=_no_caches)
    target = tmp_path_factory.mktemp("wheel")
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source], target)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the wheel only, and finds everything else where this process does.

    The path file names the other site-packages folder without what path files there add to it: the editable
    installation of the checkout is not seen.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(with_pip=True).create(folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    _run(pip, folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    there = {str(file.relative_to(ROOT)) for file in (ROOT / "megatron_probsft").rglob("*") if file.is_file()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in there if "__pycache__" not in name} == {
        name for name in packed if name.startswith("megatron_probsft/")
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed) == (ROOT / "LICENSE").exists()


def test_every_verb_answers_for_itself(environment: Path, tmp_path: Path) -> None:
    where = "import megatron_probsft; print(megatron_probsft.__file__)"
    found = _run([environment / "bin" / "python", "-c", where], tmp_path)
    assert Path(found.strip()).is_relative_to(environment)
    for verb, started in [
        (verb, _start([_probsft(environment), verb, "--help"], tmp_path)) for verb in VERBS
    ]:
        printed, _ = started.communicate(timeout=120)
        assert started.returncode == 0, printed
        assert "usage: " in printed, verb
    assert not list(tmp_path.iterdir())


def test_training_conversion_and_report(environment: Path, tiny_llama: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.jsonl", 16)
    flags = [
        "--hf-model", tiny_llama, "--data", "train.jsonl", "--objective", "p", "--train-iters", "2",
        "--global-batch-size", "4", "--seq-length", "128", "--lr", "1e-2", "--save", "run",
    ]  # fmt: skip
    probsft = _probsft(environment)
    assert "step 2/2" in _run([probsft, "train", *flags], tmp_path)
    last = [
        _start([probsft, "convert", "megatron-to-hf", "--megatron", "run", "--hf", "hf"], tmp_path),
        _start([probsft, "report", "run", "--output", "report"], tmp_path),
    ]
    for started in last:
        printed, _ = started.communicate(timeout=300)
        assert started.returncode == 0, printed
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_llama, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


def test_an_experiment_names_no_file_of_the_checkout(environment: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "figfont", "--model-save-name", "smollm2-135m", "--trainer-objective-trans", "p"]
    printed = _run([_probsft(environment), "one-click", *flags], tmp_path)
    assert f"cd {tmp_path}\n" in printed
    assert "-m megatron_probsft.commands.evaluate" in printed
    assert str(ROOT) not in printed
    assert not re.search(r"\.py\b", printed)


def _probsft(environment: Path) -> Path:
    return environment / "bin" / "probsft"


def _run(words: list, folder: Path) -> str:
    """Run a command to its end in the folder. Returns what it printed."""
    started = _start(words, folder)
    printed, _ = started.communicate(timeout=300)
    assert started.returncode == 0, printed
    return printed


def _start(words: list, folder: Path) -> subprocess.Popen[str]:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [str(word) for word in words], cwd=folder, env=outside | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _no_caches(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}
