"""An evaluation killed in the middle goes on where it was, with an engine that only pretends to be vLLM."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_probsft.commands.evaluate import parse_arguments
from megatron_probsft.evaluation.run import evaluate
from megatron_probsft.evaluation.unfinished import Unfinished
from megatron_probsft.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
# Tokens that are a function of the seed; every call appends to `calls` what it was asked for.
ENGINE = """
import json, os, sys, time
sys.argv.pop(1)
request = json.load(open(sys.argv[1]))
here = os.path.dirname(os.path.abspath(__file__))
open(here + "/calls", "a").write(json.dumps(request["seeds"]) + "\\n")
out = os.fdopen(int(sys.argv[3]), "w")
def report(**line):
    out.write(json.dumps(line) + "\\n"); out.flush()
report(engine={"dtype": "float32", "device": "none", "vllm": "0"})
for index, (prompt, seeds) in enumerate(zip(request["prompts"], request["seeds"])):
    for sample, seed in enumerate(seeds):
        tokens = [20 + seed // 290**place % 290 for place in range(5)]
        report(finished=[index, sample, tokens, "length"])
        time.sleep(float(os.environ["PAUSE"]))
json.dump({"startup_seconds": 0.1, "generation_seconds": 1.0}, open(sys.argv[2], "w"))
"""


@pytest.fixture
def flags(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    engine = tmp_path / "engine"
    engine.write_text(f"#!{sys.executable}\n{ENGINE}")  # called with vllm_process.py before its arguments
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PROBSFT_VLLM_PYTHON", str(engine))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PAUSE", "0")
    rows = [{"prompt": "one and two?", "answer": "3"}] * 5
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--model", str(tiny_llama), "--task", str(tmp_path / "task.jsonl"), "--samples", "4",
        "--temperature", "1", "--max-new-tokens", "8",
    ]  # fmt: skip


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "generations.jsonl").read_text().splitlines()]


@pytest.mark.size("test")
def test_killed_and_started_again(flags: list[str], tmp_path: Path) -> None:
    evaluate(parse_arguments([*flags, "--output", str(tmp_path / "whole")]))
    whole = lines(tmp_path / "whole")
    assert len({line["generation"] for line in whole}) == 20  # one prompt, twenty seeds

    output = tmp_path / "killed"
    command = [sys.executable, ROOT / "tools" / "evaluate.py", *flags, "--output", str(output)]
    process = subprocess.Popen(command, env={**os.environ, "PAUSE": "0.3"}, start_new_session=True)
    store = output / "unfinished.jsonl"
    while not store.exists() or store.read_text().count("\n") < 9:  # settings, engine, seven generations
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "summary.json").exists()
    store.write_bytes(store.read_bytes() + b'{"key": ["task", "4"')  # cut while it was written
    kept = store.read_text().count('"key"') - 1

    with pytest.raises(UserError, match=r"other settings: --temperature was 1.0, is 0.5; --seed was 1234"):
        evaluate(parse_arguments([*flags, "--temperature", "0.5", "--seed", "1", "--output", str(output)]))

    summary = evaluate(parse_arguments([*flags, "--output", str(output)]))
    assert lines(output) == whole
    assert (summary["resumed_generations"], summary["n"], summary["samples"]) == (kept, 5, 4)
    assert not store.exists()
    asked = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [sum(map(len, seeds)) for seeds in asked] == [20, 20, 20 - kept]
    seeds = [line["seed"] for line in whole]
    assert [seed for of_prompt in asked[2] for seed in of_prompt] == seeds[kept:]


@pytest.mark.size("test")
def test_terminated_with_its_engine(flags: list[str], tmp_path: Path) -> None:
    output = tmp_path / "terminated"
    command = [sys.executable, ROOT / "tools" / "evaluate.py", *flags, "--output", str(output)]
    process = subprocess.Popen(command, env={**os.environ, "PAUSE": "5"})
    while not (output / "unfinished.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    engine = psutil.Process(process.pid).children()
    assert engine
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(engine, timeout=3)[1]


def test_a_model_folder_may_be_named_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("models/a", str(tmp_path / "models" / "a")):
        Unfinished(tmp_path / "out", {"--model": model}).close()
    with pytest.raises(UserError, match="--model was models/a, is models/b"):
        Unfinished(tmp_path / "out", {"--model": "models/b"})


def test_killed_while_grading_needs_no_engine(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = parse_arguments([*flags, "--output", str(tmp_path / "out")])

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("megatron_probsft.evaluation.run.write_generations", fail)
        with pytest.raises(KeyboardInterrupt):
            evaluate(arguments)
    summary = evaluate(arguments)
    assert (summary["resumed_generations"], summary["vllm"]) == (20, "0")
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_other_weights_under_the_same_name_are_refused(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_probsft.evaluation.opened_model.fingerprint", lambda _: "before")
    output = tmp_path / "out"
    output.mkdir()
    arguments = parse_arguments([*flags, "--output", str(output)])
    with monkeypatch.context() as patch:
        patch.setenv("PROBSFT_VLLM_PYTHON", "/no/python")
        with pytest.raises(UserError, match="no/python"):
            evaluate(arguments)
    monkeypatch.setattr("megatron_probsft.evaluation.opened_model.fingerprint", lambda _: "after")
    with pytest.raises(UserError, match="the model's weights was before, is after"):
        evaluate(arguments)
