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

from megatron_probsft.experiments.records import check_record, write_record
from megatron_probsft.experiments.script import render
from megatron_probsft.experiments.steps import Step, run_steps
from megatron_probsft.experiments.words import words_of
from megatron_probsft.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
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
    assert file.read_text() == f"of first|{awkward}|{Path.cwd()}"


@both
def test_commands_run_in_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    code = "open('said', 'w').write(os.getcwd())"
    run([step(tmp_path, "first", code)])
    run([step(tmp_path, "first", code), step(tmp_path, "second")])
    assert (tmp_path / "said").read_text() == str(tmp_path)
    assert log(tmp_path) == "first second"


@both
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("tools/evaluate.py --task math", "-m megatron_probsft.commands.evaluate --task math"),
        ("tools/prepare_data.py math", "-m megatron_probsft.commands.prepare_data math"),
        (
            "-m torch.distributed.run tools/probe.py",
            "-m torch.distributed.run -m megatron_probsft.commands.probe",
        ),
        ("examples/quickstart/smollm2.py --output x", "-m megatron_probsft.experiments.smollm2 --output x"),
        ("-m megatron_probsft.train --hf-model runs/x", "-m megatron_probsft.train --hf-model {cwd}/runs/x"),
    ],
)
def test_what_ran_a_file_of_the_checkout_is_done_still(
    before: str, now: str, run: Run, tmp_path: Path
) -> None:
    done, record = tmp_path / "done", tmp_path / "record"
    done.touch()
    write_record(record, before.split())
    run([Step("as before", tuple(now.format(cwd=Path.cwd()).split()), done, record)])
    write_record(record, [*before.split(), "--seed", "2"])
    with pytest.raises(UserError, match="was made with --seed 2, not that"):
        run([Step("another", tuple(now.format(cwd=Path.cwd()).split()), done, record)])


def test_paths_of_other_folders_are_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for folder in (here, there):
        monkeypatch.chdir(folder)
        assert words_of({"data": folder / "x"}) == ["--data", "x"]
    write_record(tmp_path / "record", words_of({"data": here / "x"}, absolute=True))
    check_record(tmp_path / "record", tmp_path, words_of({"data": here / "x"}, absolute=True))
    with pytest.raises(UserError, match="here/x, not x"):
        check_record(tmp_path / "record", tmp_path, words_of({"data": there / "x"}, absolute=True))


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
    flags = {
        "a_b": 1,
        "on": True,
        "off": False,
        "none": None,
        "many": ["x", 2],
        "path": Path.cwd() / "runs/y",
    }
    assert words_of(flags) == ["--a-b", "1", "--on", "--no-off", "--many", "x", "2", "--path", "runs/y"]
