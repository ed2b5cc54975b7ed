"""Mistakes end in one line before vLLM starts, and a failure of vLLM's in one line with its log."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_probsft.commands.evaluate import parse_arguments
from megatron_probsft.domains.benchmarks.problems import Problem, sample_seed
from megatron_probsft.evaluation.engines import vllm_runner
from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts, Seconds
from megatron_probsft.evaluation.request import Generation, Request
from megatron_probsft.evaluation.run import evaluate
from megatron_probsft.runtime.errors import UserError

ROW = {"prompt": "what is one and two?", "answer": "3"}


def run(model: Path, folder: Path, rows: list[object], *flags: str) -> None:
    """`rows`: objects, or lines as they are."""
    task = folder / "task.jsonl"
    task.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    arguments = ["--model", str(model), "--task", str(task), "--output", str(folder / "out"), *flags]
    evaluate(parse_arguments(arguments))


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([ROW, "{"], [], "task.jsonl line 2 is not valid JSON"),
        (['"text"'], [], "line 1 must be a JSON object, got str"),
        ([], [], "holds no rows"),
        ([ROW, {"prompt": "a"}], [], r"line 2 has no key 'answer' \(--answer-key\); it has: prompt"),
        ([ROW], ["--prompt-key", "q"], r"no key 'q' \(--prompt-key\); it has: prompt, answer"),
        ([{"prompt": 3, "answer": "3"}], [], "line 1: 'prompt' must be text, got int"),
        ([{"prompt": "a", "answer": None}], [], "line 1: 'answer' must be text or a number, got NoneType"),
        ([ROW, {"prompt": "a", "answer": "b"}], ["--grader", "number"], "line 2: the answer 'b' is no"),
        ([ROW], ["--grader", "nubmer"], "--grader nubmer is unknown: did you mean number"),
        ([ROW], ["--template", "alpaca"], "--template alpaca is unknown"),
        ([ROW], ["--max-model-len", "1200"], "--max-model-len 1200 exceeds the model's 1024 positions"),
        ([ROW], ["--max-model-len", "7"], r"line 1: \d+ prompt tokens leave no room in --max-model-len 7"),
        ([{**ROW, "prompt": "one " * 1100}], [], "prompt tokens leave no room in the model's 1024 positions"),
        ([{**ROW, "prompt": ""}], ["--template", "plain"], "line 1: the prompt is empty"),
        ([ROW], ["--samples", "0"], "--samples must be at least 1, got 0"),
        ([ROW], ["--samples", "2"], "--samples 2 at temperature 0 are all alike"),
        ([ROW], ["--temperature", "nan"], "--temperature must be a number of at least 0, got nan"),
        ([ROW], ["--start", "1"], "--start 1 is beyond the 1 problems of task"),
        ([ROW], ["--start", "3", "--end", "3"], "--end must be greater than --start 3, got 3"),
        ([ROW], ["--data", "a.jsonl"], "--data is for --task math, medical and figfont"),
        ([ROW], ["--server", "http://127.0.0.1:9/v1"], "v1 lists no models: .* up to"),
        ([ROW], ["--server", "here"], "--server here lists no models"),
        ([ROW], ["--server", "a", "--dtype", "float32"], "--dtype, .* are the server's"),
        ([ROW], ["--server", "a", "--max-model-len", "99"], "--dtype, .* are the server's"),
    ],
)  # fmt: skip
def test_mistakes(
    tiny_llama: Path, tmp_path: Path, rows: list[object], flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tiny_llama, tmp_path, rows, *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_incomplete_model_folders(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder: give a Hugging Face model folder"):
        run(tmp_path / "absent", tmp_path, [ROW])
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        run(model, tmp_path, [ROW])
    shutil.copy(tiny_llama / "config.json", model)
    with pytest.raises(UserError, match=r"model has no tokenizer: it needs tokenizer.json") as caught:
        run(model, tmp_path, [ROW])
    assert "\n" not in str(caught.value)


def test_missing_task_and_finished_output(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ["--model", str(tiny_llama), "--output", str(tmp_path), "--task", str(tmp_path / "no.jsonl")]
    with pytest.raises(UserError, match=r"no.jsonl does not exist"):
        evaluate(parse_arguments(flags))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="holds a finished evaluation: name another folder"):
        evaluate(parse_arguments(flags))


def interpreter(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the interpreter that knows vLLM."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PROBSFT_VLLM_PYTHON", str(file))


class Nobody:
    """Listens to an engine, and keeps nothing."""

    def started(self, engine: EngineFacts) -> None: ...

    def finished(self, request: Request, generation: Generation) -> None: ...


def generate(folder: Path) -> Seconds:
    request = Request(Problem("a", "0", 0, "one", "two", "row 1"), 0, [1, 2], max_new_tokens=2, seed=3)
    runner = vllm_runner.VllmRunner(folder, folder / "vllm.log", kv_bytes_per_token=8)
    return runner.generate([request], Decoding([0]), Nobody())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('bad weights')", r"status 1, ValueError: bad weights \(log: .*vllm.log\)$"),
        ("import os; os.kill(os.getpid(), 9)", "status -9, killed, perhaps for want of memory"),
        ("import sys; sys.exit(3)", "status 3, no error in its log"),
        ("import sys; open(sys.argv[3], 'w').write('{\"error\": \"ValueError: two\\\\nlines\"}')",
         r"vLLM: ValueError: two lines \(log: "),
        ("import sys\nprint('(EngineCore) ERROR 01-01 [core.py:1] torch.OutOfMemoryError: CUDA is full')\n"
         "open(sys.argv[3], 'w').write('{\"error\": \"RuntimeError: failed. See root cause above\"}')",
         r"vLLM: OutOfMemoryError: CUDA is full \(log: "),
    ],
)  # fmt: skip
def test_failures_of_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    interpreter(tmp_path, script, monkeypatch)
    with pytest.raises(UserError, match=message):
        generate(tmp_path)


def test_missing_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBSFT_VLLM_PYTHON", "/no/python")
    with pytest.raises(UserError, match="PROBSFT_VLLM_PYTHON=/no/python is not an executable interpreter"):
        generate(tmp_path)


def test_what_vllm_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker left behind, which holds the progress pipe open, neither hangs the parent nor survives it."""
    script = "import os, subprocess; print(subprocess.Popen(['sleep', '600'], close_fds=False).pid)"
    interpreter(tmp_path, script, monkeypatch)
    with pytest.raises(UserError, match="status 0"):
        generate(tmp_path)
    state = subprocess.run(
        ["ps", "-o", "state=", "-p", (tmp_path / "vllm.log").read_text()], capture_output=True, text=True
    )
    assert state.stdout.strip() in ("", "Z")


def test_missing_lscpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vLLM that says it runs on CPU: the real one takes seconds to say so."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    platform = "from types import SimpleNamespace\ncurrent_platform = SimpleNamespace(device_type='cpu')\n"
    (tmp_path / "vllm" / "platforms.py").write_text(platform)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PROBSFT_VLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="lscpu, which is not on PATH"):
        generate(tmp_path)


def test_vllm_side_needs_no_project(tmp_path: Path) -> None:
    """It is run by its path, where nothing but vLLM and the standard library need be installed."""
    file = Path(vllm_runner.__file__).with_name("vllm_process.py")
    imports = [
        line.split()[1] for line in file.read_text().splitlines() if line.startswith(("import", "from"))
    ]
    assert {name.split(".")[0] for name in imports} <= sys.stdlib_module_names


def test_unknown_tasks_are_refused_with_the_nearest_name(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ["--model", str(tiny_llama), "--output", str(tmp_path), "--task"]
    with pytest.raises(UserError, match=r"--task maths is none of math, .* no such file; did you mean math"):
        evaluate(parse_arguments([*flags, "maths"]))


def test_seeds_differ_and_do_not_move() -> None:
    problems = [Problem(name, str(i), 0, "same", "", "") for name in ("a", "b") for i in range(50)]
    seeds = {
        sample_seed(seed, problem, sample) for seed in (1, 2) for problem in problems for sample in range(4)
    }
    assert len(seeds) == 800
    assert max(seeds) < 2**53
    assert sample_seed(1234, problems[0], 0) == 163341952976925
