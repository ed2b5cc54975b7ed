"""Starts `tiny_run` in processes of their own: a place is chosen when a process starts, not within it."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.model_folder import TINY, Chats, save_folder, words
from benchmarks.gpu.kit.place import NotHereError

TRANSFORMER_ENGINE = "Transformer Engine"
_SETTINGS: dict[str, Any] = {
    "objective": "original", "seq_length": 256, "global_batch_size": 4, "lr": 1e-3, "lr_warmup_iters": 2,
    "seed": 5, "num_workers": 1,
}  # fmt: skip


class KilledError(Exception):
    """A process was ended by SIGKILL."""


@dataclass(frozen=True)
class TinyProcess:
    """Where a tiny model is computed: on `cpu` or `cuda`, in local layers or TE's, in a dtype."""

    device: str
    layers: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.device}, {self.layers}, {self.dtype}"

    def folder(self, name: str) -> Path:
        """Return the folder of one of this place's runs."""
        return work() / f"{self}, {name}".replace(", ", "-").replace(" ", "")

    def do(self, action: str, name: str, **settings: Any) -> Any:
        """Return what a function of `tiny_run` returns; what its libraries print goes to this part's log.

        Raises:
            NotHereError: Transformer Engine is asked for and not installed.
            KilledError: the process was killed.
            RuntimeError: it ended otherwise than well.
        """
        te = self.layers == TRANSFORMER_ENGINE
        if te and importlib.util.find_spec("transformer_engine") is None:
            raise NotHereError("transformer-engine is not installed")
        result = work() / f"{self.folder(name).name}.json"
        everything = {
            "hf_model": str(work() / "model"), "data": [str(work() / "train.jsonl")],
            "data_cache_path": str(work() / "cache"), "save": str(self.folder(name)),
            "bf16": self.dtype == "bf16", **_SETTINGS, **settings,
        }  # fmt: skip
        options = {"action": action, "settings": everything, "without_te": not te, "result": str(result)}
        environment = os.environ | {
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
        }
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "benchmarks.gpu.kit.tiny_run", json.dumps(options)]
        status = subprocess.run(command, check=False, env=environment, stdout=sys.stderr).returncode
        if status == -signal.SIGKILL:
            raise KilledError
        if status:
            raise RuntimeError(f"{action} in {self} ended with exit status {status}, see log.txt")
        return json.loads(result.read_text())

    def steps(self, name: str) -> dict[int, tuple[float, float]]:
        """Return the loss and the gradient's norm of each training step that a run's folder tells of."""
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        records = [record for line in lines if (record := json.loads(line)).get("kind") == "train"]
        return {record["iteration"]: (record["loss"], record["grad_norm"]) for record in records}


@functools.cache
def work() -> Path:
    """Return a folder with a tiny model and data, which goes when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="gpu_kit_")
    _KEPT.append(folder)
    path = Path(folder.name)
    save_folder(path / "model", TINY, weights=True)
    # Samples of at most 128 tokens are one block of a flash-attention kernel, which adds blocks in any order.
    Chats(count=40, median=40, longest=112, words=words(TINY)).write(path / "train.jsonl")
    return path


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
