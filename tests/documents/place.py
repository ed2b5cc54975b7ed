"""What the documents' pages speak of: a model, data and a run, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.documents import ROOT
from tests.support.tiny_models import save_tiny_model

MODEL = "runs/models/SmolLM2-135M-Instruct"
FIRST = (
    f"probsft train --hf-model {MODEL} --data train.jsonl --valid-data valid.jsonl --objective p "
    "--train-iters 2 --global-batch-size 8 --seq-length 512 --save runs/first --save-hf runs/first-hf"
)
# The defaults of the flags that FIRST gives.
GIVEN: dict[str, Any] = {
    "hf_model": None, "valid_data": [], "objective": "original", "train_iters": None,
    "global_batch_size": 256, "seq_length": 2048, "save_hf": None,
}  # fmt: skip
_LONGEST = 240  # seconds for a block, on a busy machine


def make_place(place: Path) -> Path:
    """A tiny model, train.jsonl, valid.jsonl, chat.jsonl; a run in runs/first, exported to runs/first-hf."""
    model = save_tiny_model(place / MODEL, heads=4, groups=2, head_dim=32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    pairs = [{"prompt": f"what is the sum of {i} and two?", "response": f"it is {i + 2}."} for i in range(64)]
    chats = [
        {"messages": [{"role": "user", "content": one["prompt"]},
                      {"role": "assistant", "content": one["response"]}]}
        for one in pairs
    ]  # fmt: skip
    for name, rows in {"train": pairs, "valid": pairs[:8], "chat": chats}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_in(place, ["bash", "-c", FIRST], "the pages' own run")
    return place


def defaults_of(run_folder: Path) -> dict[str, Any]:
    """The settings of a run, flat: the defaults of all that it was not given."""
    return yaml.safe_load((run_folder / "train_config.yaml").read_text())


def run_in(folder: Path, words: list[str], what: str) -> str:
    """Run a command as a reader does who has activated the environment; its standard output."""
    programs = Path(sys.executable).parent  # python, probsft and torchrun are in it
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LONGEST
    )
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout
