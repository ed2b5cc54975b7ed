"""Kernels and head against float64; a model and its training in every place; resume; conversion."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.model_folder import TINY, Chats, save_folder, words
from benchmarks.gpu.kit.place import NotHereError, Place, WrongError

STEPS = 20
SETTINGS: dict[str, Any] = {
    "objective": "original", "seq_length": 256, "global_batch_size": 4, "lr": 1e-3, "lr_warmup_iters": 2,
    "seed": 5, "num_workers": 1,
}  # fmt: skip
CHECKPOINT, END = 3, 8
"""The step of the checkpoint that a killed run goes on from, `tiny_run.KILLED_FROM` being later; the last."""


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    from benchmarks.gpu.kit import kernels

    found = dict(kernels.rows(place))
    if place.small:
        found["cpu, bf16"] = functools.partial(_against_float32, "cpu, bf16")
        others = ["local"]
    else:
        others = ["local", "Transformer Engine"]
        for name in others:
            found[f"cuda, {name}, bf16"] = functools.partial(_against_float32, f"cuda, {name}, bf16")
    for name in others:
        found[f"killed and resumed, converted, {name}"] = functools.partial(_resume, place, name)
    return found


@functools.cache
def _work() -> Path:
    """A folder with a tiny model and data, for the rest of this process."""
    folder = tempfile.TemporaryDirectory(prefix="gpu_kit_")
    _KEPT.append(folder)
    path = Path(folder.name)
    save_folder(path / "model", TINY, weights=True)
    Chats(count=40, median=40, longest=200, words=words(TINY)).write(path / "train.jsonl")
    return path


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def _losses(where: str) -> dict[str, Any]:
    """What `tiny_run.losses` gives in a place such as `cuda, local, bf16`."""
    device, *_, dtype = where.split(", ")
    settings = {"save": _name(where), "train_iters": STEPS, "bf16": dtype == "bf16"}
    return _tiny_run("losses", settings, device=device, without_te="Transformer Engine" not in where)


def _against_float32(where: str) -> dict[str, Any]:
    """Compare a place with the CPU in float32, by the yardstick of what bfloat16 changes on the CPU."""
    _need(where)
    exact, usual, found = (_losses(name) for name in ("cpu, float32", "cpu, bf16", where))

    def distance(one: Sequence[float], other: Sequence[float]) -> float:
        if len(one) != len(other):
            raise WrongError(f"{len(one)} numbers where the CPU has {len(other)}")
        return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(one, other, strict=True))

    record: dict[str, Any] = {"layer": found["layer"]}
    wrong = []
    for key in ("log_p", "losses", "norms"):
        of_place, of_cpu = distance(found[key], exact[key]), distance(usual[key], exact[key])
        record |= {f"distance_{key}": of_place, f"distance_{key}_cpu": of_cpu}
        if not of_place <= 3 * of_cpu + 1e-3:
            wrong.append(f"{key} differ by {of_place:.1e}, where bfloat16 on the CPU has {of_cpu:.1e}")
    if wrong:
        raise WrongError("; ".join(wrong))
    return record | {
        "result": f"{found['layer']}: log p of {len(exact['log_p'])} tokens within "
        f"{record['distance_log_p']:.1e}, {STEPS} losses within {record['distance_losses']:.1e} "
        f"of float32 on the CPU, where bf16 has {record['distance_log_p_cpu']:.1e} and "
        f"{record['distance_losses_cpu']:.1e}"
    }


def _resume(place: Place, name: str) -> dict[str, Any]:
    """A killed and resumed run ends as one that was not, bit for bit; weights convert there and back."""
    where = f"{place.device}, {name}, bf16"
    _need(where)

    def run(action: str, save: str, **more: Any) -> None:
        settings = {
            "save": f"{_name(where)}-{save}",
            "train_iters": END,
            "save_interval": CHECKPOINT,
            "bf16": True,
        }
        _tiny_run(action, settings | more, device=place.device, without_te=name == "local")

    run("train", "whole")
    try:
        run("train_and_die", "killed")
    except subprocess.CalledProcessError as error:
        if error.returncode != -signal.SIGKILL:
            raise
    else:
        raise WrongError("the run that was to be killed went on to its end")
    whole, killed = (f"{_name(where)}-{save}" for save in ("whole", "killed"))
    run("train", "killed", load=str(_work() / killed), hf_model=None)
    steps, resumed = _steps(whole), _steps(killed)
    for step in range(CHECKPOINT + 1, END + 1):
        if steps[step] != resumed[step]:
            raise WrongError(f"step {step}: loss and norm {resumed[step]}, without the kill {steps[step]}")
    converted = _tiny_run(
        "convert",
        {"save": f"{_name(where)}-converted", "runs": [str(_work() / whole), str(_work() / killed)]},
        device=place.device, without_te=name == "local",
    )  # fmt: skip
    if not all(converted.values()):
        raise WrongError(f"equal bit for bit: {converted}")
    return {
        "result": f"killed and resumed from step {CHECKPOINT}: losses, norms, weights equal bit for bit; "
        "so are weights converted there and back"
    }


def _steps(run: str) -> dict[int, tuple[float, float]]:
    lines = (_work() / run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        one["iteration"]: (one["loss"], one["grad_norm"]) for one in records if one.get("kind") == "train"
    }


def _need(where: str) -> None:
    if "Transformer Engine" in where and importlib.util.find_spec("transformer_engine") is None:
        raise NotHereError("transformer-engine is not installed")


def _name(where: str) -> str:
    return where.replace(", ", "-").replace(" ", "")


def _tiny_run(action: str, settings: dict[str, Any], *, device: str, without_te: bool) -> dict[str, Any]:
    """Do a `tiny_run` in a process of its own; its libraries' lines go to the log of this part."""
    work = _work()
    everything = {
        "hf_model": str(work / "model"), "data": [str(work / "train.jsonl")],
        "data_cache_path": str(work / "cache"), **SETTINGS, **settings, "save": str(work / settings["save"]),
    }  # fmt: skip
    result = work / "result.json"
    options = {"action": action, "settings": everything, "without_te": without_te, "result": str(result)}
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu.kit.tiny_run", json.dumps(options)]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return json.loads(result.read_text())
