"""--help and mistakes do without the libraries that take seconds to import: told by what is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = (
    "torch",
    "transformers",
    "megatron",
    "datasets",
    "matplotlib",
    "sympy",
    "vllm",
    "reasoning_gym",
    "pandas",
)
CONVERT = "tools/convert_checkpoint.py"
COMMANDS = [
    *([str(file.relative_to(ROOT))] for file in sorted((ROOT / "tools").glob("*.py"))),
    *([CONVERT, verb] for verb in ("hf-to-megatron", "megatron-to-hf", "verify", "inspect")),
    ["megatron_probsft"], ["megatron_probsft", "report"],
    ["megatron_probsft.train"], ["megatron_probsft.objectives"], ["megatron_probsft.experiments.hub_model"],
    ["megatron_probsft.experiments.smollm2"], ["examples/quickstart/run.py"], ["examples/continuum/run.py"],
]  # fmt: skip
PROBE = """
import atexit, os, runpy, sys
program, sys.argv = sys.argv[1], sys.argv[1:]
heavy = os.environ["HEAVY"].split()
atexit.register(lambda: print("heavy:", *sorted({name.split(".")[0] for name in sys.modules} & set(heavy))))
(runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="__main__")
"""


def _run(words: list[str], folder: Path) -> tuple[int, str, list[str]]:
    """(exit status, standard error and output, the heavy libraries that it imported)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HEAVY": " ".join(HEAVY), "HF_HUB_OFFLINE": "1"}
    program = str(ROOT / words[0]) if words[0].endswith(".py") else words[0]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, program, *words[1:]],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    output, _, heavy = done.stdout.rpartition("heavy:")
    return done.returncode, done.stderr + output, heavy.split()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    status, output, heavy = _run([*words, "--help"], tmp_path)
    assert status == 0, output
    assert "usage: " in output
    assert heavy == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path) -> Path:
    """A folder with a model, data and what must not be overwritten."""
    (tmp_path / "model").symlink_to(tiny_llama)
    rows = [
        json.dumps(dict.fromkeys(("prompt", "response", "question", "answer"), str(i))) for i in range(50)
    ]
    bad = {
        "cut": '{"prompt": "a", "response": ', "list": '["a"]', "number": '{"prompt": "a", "response": 3}',
        "column": '{"prompt": "a"}', "latin1": '{"prompt": "é", "response": "b"}',
    }  # fmt: skip
    (tmp_path / "good.jsonl").write_text("\n".join(rows))
    for name, line in bad.items():
        (tmp_path / f"{name}.jsonl").write_bytes("\n".join([*rows, line, *rows]).encode("latin1"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "other.json").write_text("{}")
    return tmp_path


TRAIN = ["megatron_probsft.train", "--train-iters", "1", "--seq-length", "64"]
GOOD = [*TRAIN, "--hf-model", "model", "--save", "new", "--data"]
PREPARE = ["tools/prepare_data.py", "math", "--output", "new", "--data"]
PROBING = ["tools/probe.py", "--hf-model", "model", "--seq-length", "64", "--data"]
EVALUATE = ["tools/evaluate.py", "--model", "model", "--output", "new", "--task"]
ONE_CLICK = ["tools/one_click.py", "--dataset", "math", "--trainer-objective-trans", "p"]
MISTAKES: list[tuple[list[str], str]] = [
    ([*GOOD, "good.jsonl", "--lr", "-1"], "--lr must be more than 0"),
    ([*GOOD, "good.jsonl", "--learning-rate", "1"], "unknown flag --learning-rate"),
    ([*GOOD, "good.jsonl", "--template", "alpaca"], "--template alpaca is unknown"),
    ([*GOOD, "good.jsonl", "--tensor-model-parallel-size", "4"], "do not divide into tensor"),
    ([*GOOD, "good.jsonl", "--pipeline-model-parallel-size", "3"], "do not divide into tensor"),
    ([*GOOD, "good.jsonl", "--decoder-first-pipeline-num-layers", "4"], "on the first"),
    ([*GOOD, "good.jsonl", "--seq-length", "2048"], "more than the model's 1024 positions"),
    ([*GOOD, "absent.jsonl"], "absent.jsonl: no such data file"),
    ([*GOOD, "good.jsonl", "--valid-data", "absent.jsonl"], "absent.jsonl: no such data file"),
    ([*GOOD, "good.jsonl", "--valid-data", "cut.jsonl"], "cut.jsonl:51: not valid JSON"),
    ([*GOOD, "good.jsonl", "--response-key", "reply"], "has no column 'reply'"),
    ([*GOOD, "cut.jsonl"], "cut.jsonl:51: not valid JSON"),
    ([*GOOD, "list.jsonl"], "list.jsonl:51: is of type list, not a JSON object"),
    ([*GOOD, "number.jsonl"], "number.jsonl:51: 'response' is of type int, not a string"),
    ([*GOOD, "column.jsonl"], "column.jsonl:51: 'response' is missing"),
    ([*GOOD, "latin1.jsonl"], "latin1.jsonl:51: not valid JSON"),
    ([*GOOD, "good.jsonl", "--save", "there"], "--save there exists"),
    ([*GOOD, "good.jsonl", "--hf-model", "absent"], "absent is not a Hugging Face model folder"),
    ([*GOOD, "good.jsonl", "--hf-model", "./ab/sent"], "./ab/sent is not a Hugging Face model folder"),
    ([*TRAIN, "--load", "absent", "--save", "new", "--data", "good.jsonl"], "folder absent does not exist"),
    ([*PROBING, "cut.jsonl"], "cut.jsonl:51: not valid JSON"),
    ([*PROBING, "good.jsonl", "--max-samples", "0"], "--max-samples must be more than 0"),
    ([*PREPARE, "absent.jsonl"], "absent.jsonl: no such data file"),
    ([*PREPARE, "cut.jsonl"], "cut.jsonl:51: not valid JSON"),
    ([*EVALUATE, "absent.jsonl"], "absent.jsonl does not exist"),
    ([*EVALUATE, "cut.jsonl"], "cut.jsonl line 51 is not valid JSON"),
    ([*EVALUATE, "column.jsonl"], "line 51 has no key 'answer'"),
    ([*EVALUATE, "good.jsonl", "--template", "alpaca"], "--template alpaca is unknown"),
    ([*EVALUATE, "good.jsonl", "--model", "absent"], "--model absent is no folder"),
    ([*EVALUATE, "math", "--data", "cut.jsonl"], "cut.jsonl:51: not valid JSON"),
    ([CONVERT, "hf-to-megatron", "--hf", "absent", "--megatron", "new"], "absent is not a Hugging Face"),
    ([CONVERT, "hf-to-megatron", "--hf", "model", "--megatron", "there"], "there exists"),
    ([CONVERT, "hf-to-megatron", "--hf", "model", "--megatron", "new", "--workers", "0"], "--workers must"),
    ([CONVERT, "megatron-to-hf", "--megatron", "absent", "--hf", "new"], "folder absent does not exist"),
    ([CONVERT, "verify", "--hf", "absent"], "absent is not a Hugging Face model folder"),
    ([CONVERT, "inspect", "--megatron", "there"], "there holds no checkpoint"),
    (["tools/report.py", "absent", "--output", "new"], "run absent does not exist"),
    ([*ONE_CLICK, "--model", "absent"], "absent is not a Hugging Face model folder"),
    ([*ONE_CLICK, "--model-save-name", "qwen"], "--model-save-name qwen is unknown"),
    (
        ["megatron_probsft.objectives", "--output", "objectives.txt"],
        "--output must end in .png, .pdf or .svg",
    ),
    (["examples/quickstart/run.py", "--model", "absent"], "absent is not a Hugging Face model folder"),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_are_told_without_heavy_imports(words: list[str], message: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    status, output, heavy = _run(words, place)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2, output
    assert len(lines) == 1
    assert message in lines[0]
    assert heavy == []
    assert sorted(place.rglob("*")) == before
