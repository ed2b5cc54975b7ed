"""`probsft VERB`: the verbs that there are, each with its own module and usage line."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from megatron_probsft.commands import main as program


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["probsft", *words])
    program.main()


def test_every_command_is_a_verb_and_described() -> None:
    files = {file.stem for file in Path(program.__file__).parent.glob("*.py")} - {"__init__", "main"}
    assert {verb.replace("-", "_") for verb in program.VERBS} == files
    lines = str(program.__doc__).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("probsft ") and "  " in line] == [
        *program.VERBS
    ]


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]], ids=str)
def test_help_lists_the_verbs(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *words)
    printed = capsys.readouterr().out
    assert printed.startswith("usage: probsft VERB")
    assert all(f"probsft {verb} " in printed for verb in program.VERBS)


@pytest.mark.parametrize("verb", ["convert", "prepare-data", "report"])
def test_a_verbs_usage_is_what_was_typed(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, verb, "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: probsft {verb} ")


def test_the_version_is_the_installed_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--version")
    assert capsys.readouterr().out.split() == [
        "megatron_probsft",
        importlib.metadata.version("megatron_probsft"),
    ]


@pytest.mark.parametrize(
    ("verb", "hint"), [("evalute", "did you mean evaluate?"), ("xyz", "use one of train, convert, evaluate")]
)
def test_what_is_no_verb_is_refused(
    verb: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, verb)
    assert end.value.code == 2
    assert f"error: probsft {verb}: there is no such verb: {hint}" in capsys.readouterr().err
