"""One click with real commands: killed while it trains and while it scores, it goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]
STEPS, INTERVAL = 14, 4


def test_killed_twice_and_started_again(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", heads=4, groups=2, head_dim=32)
    command = [
        sys.executable, "tools/one_click.py", "--dataset", "math", "--model", str(model),
        "--trainer_objective_trans", "GeneralFamily-8", "--run_script", "--output", str(tmp_path / "out"),
        "--prepare-generate", "--prepare-train", "24", "--prepare-validation", "8", "--prepare-test", "4",
        "--seq-length", "1000", "--truncation", "right", "--global-batch-size", "1",
        "--train-iters", str(STEPS), "--save-interval", str(INTERVAL), "--score-samples", "2",
        "--score-max-new-tokens", "16",
    ]  # fmt: skip
    folder = tmp_path / "out" / "math" / "model"
    run = folder / "GeneralFamily-8-seed1"

    killed_when(command, lambda: len(steps_of(run)) > INTERVAL)
    before = steps_of(run)
    assert not (run / "hf").exists()
    assert (run / "megatron" / "latest_checkpointed_iteration.txt").exists()

    killed_when(command, lambda: (run / "score" / "vllm.log").exists())
    after = steps_of(run)
    assert [step["iteration"] for step in after] == list(range(1, STEPS + 1))
    kept = [step for step in after if step in before]  # to the bit, times included: not done again
    assert len(kept) >= INTERVAL
    assert not (run / "score" / "summary.json").exists()

    trained = (run / "hf" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run / "hf" / "model.safetensors").stat().st_mtime_ns == trained
    assert done.stdout.count("done before: ") == 4  # data, probe, base score, training
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert len((run / "score" / "generations.jsonl").read_text().splitlines()) == 4 * 2
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["base", "GeneralFamily-8"]
    assert results["data"]["data_sources"] == ["generated stand-in: gsm_symbolic (reasoning-gym)"]
    assert "generated stand-in" in (folder / "results.md").read_text()
    assert "stand-in" in done.stdout

    command[command.index("--train-iters") + 1] = str(STEPS + 1)  # would be another run under this name
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert f"was made with {STEPS}, not {STEPS + 1}" in done.stderr


def killed_when(command: list[str], happened: Callable[[], bool]) -> None:
    """Start the command, SIGKILL it at that moment, and wait until what it had started is gone, too."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # the pipe closes with the last of them


def steps_of(run: Path) -> list[dict]:
    """The records of training steps, without a last line that is being written."""
    file = run / "megatron" / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]
