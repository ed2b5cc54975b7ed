"""Resuming a list of commands, run from Python and from the script alike, with commands that leave traces."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from megatron_probsft.experiments.script import render
from megatron_probsft.experiments.steps import ROOT, Step, run_steps, words_of
from megatron_probsft.runtime.errors import UserError

Run = Callable[[list[Step]], None]


def from_python(steps: list[Step]) -> None:
    run_steps(steps, Console(quiet=True))


def from_bash(steps: list[Step]) -> None:
    """The rendered script; its failures as the Python runner's."""
    done = subprocess.run(
        ["bash", "-c", render("a test", steps)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(done.stdout + done.stderr)


both = pytest.mark.parametrize("run", [from_python, from_bash])


def step(folder: Path, name: str, code: str = "", *, argument: str = "x", done: bool = True) -> Step:
    """Writes its name into the log, runs `code`, then leaves the file NAME."""
    leave = f"open({str(folder / name)!r}, 'w').close()" if done else ""
    log = f"open({str(folder / 'log')!r}, 'a').write({name + ' '!r})"
    words = (
        "-c",
        f"import os, sys\n{log}\n{code}\n{leave}".replace("\n", "; ").replace("; ; ", "; "),
        argument,
    )
    return Step(name, words, folder / name, folder / f"{name}.command", {"NAME": f"of {name}"})


def log(folder: Path) -> str:
    return (folder / "log").read_text().strip()


@both
def test_each_runs_once(run: Run, tmp_path: Path) -> None:
    steps = [step(tmp_path, "first"), step(tmp_path, "second")]
    run(steps)
    run([*steps, step(tmp_path, "third")])
    assert log(tmp_path) == "first second third"


@both
def test_goes_on_after_a_failure(run: Run, tmp_path: Path) -> None:
    failing = step(tmp_path, "second", f"os.path.exists({str(tmp_path / 'mended')!r}) or sys.exit(3)")
    steps = [step(tmp_path, "first"), failing, step(tmp_path, "third")]
    with pytest.raises(UserError):
        run(steps)
    assert log(tmp_path) == "first second"
    (tmp_path / "mended").touch()
    run(steps)
    assert log(tmp_path) == "first second second third"


@both
def test_success_without_the_result_is_no_success(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stopped before its end"):
        run([step(tmp_path, "first", done=False), step(tmp_path, "second")])
    assert log(tmp_path) == "first"


@both
def test_what_another_command_made_is_refused(run: Run, tmp_path: Path) -> None:
    run([step(tmp_path, "first", argument="--lr=1")])
    with pytest.raises(UserError, match="another"):
        run([step(tmp_path, "first", argument="--lr=2")])
    assert log(tmp_path) == "first"


@both
def test_environment_and_awkward_words_arrive(run: Run, tmp_path: Path) -> None:
    file, awkward = tmp_path / "said", 'it\'s "$HOME" * \\ [dim]ü'
    code = f"open({str(file)!r}, 'w').write(os.environ['NAME'] + '|' + sys.argv[1] + '|' + os.getcwd())"
    run([step(tmp_path, "first", code, argument=awkward)])
    assert file.read_text() == f"of first|{awkward}|{ROOT}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_runner_takes_its_command_along(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM is passed on; after SIGKILL the system sends it to the command."""
    code = f"import time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "from pathlib import Path; from rich.console import Console\n"
        "from tests.unit.experiments.test_steps import step, run_steps\n"
        f"run_steps([step(Path({str(tmp_path)!r}), 'first', {code!r})], Console(quiet=True))"
    )
    runner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    runner.send_signal(number)
    assert runner.wait(timeout=60) == (128 + number if number == signal.SIGTERM else -number)
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_words_of_flags() -> None:
    flags = {"a_b": 1, "on": True, "off": False, "none": None, "many": ["x", 2], "path": ROOT / "runs" / "y"}
    assert words_of(flags) == ["--a-b", "1", "--on", "--no-off", "--many", "x", "2", "--path", "runs/y"]
