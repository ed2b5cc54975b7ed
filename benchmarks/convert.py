"""How fast does conversion stream, and in how much memory? A synthetic Llama of 3 billion parameters.

    python benchmarks/convert.py --json FILE

Each direction against `cp -r` of what it reads, just before it, into the same file system, the source in the
page cache for both and what cp wrote removed again; peak memory is the process's maximum resident set. Before
each there is a pause: a virtual machine gives freed pages back to its host within seconds, and to get them
again costs more than the copying; cp would find them still there, a program that first imports would not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import hardware, show, write_json
from megatron_probsft.checkpoint.hf.safetensors_writer import SafetensorsWriter, TensorPlan
from megatron_probsft.checkpoint.hf.weights import hf_shapes
from megatron_probsft.models.hf_model import read_hf_model

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 8  # seconds
COLUMNS = {
    "direction": "{direction}",
    "GB": "{gigabytes:.2f}",
    "seconds": "{seconds:.1f}",
    "GB/s": "{gigabytes_per_second:.2f}",
    "cp, seconds": "{cp_seconds:.1f}",
    "÷ cp": "{ratio_to_cp:.2f}",
    "peak memory, GB": "{peak_memory_gb:.2f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28, help="28: Llama-3.2-3B's shape (default)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many rounds")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(Path(folder), args.layers, args.workers, args.rounds)
    show(f"conversion, {hardware()['hardware']}", COLUMNS, rows)
    if args.json:
        write_json(args.json, rows)


def measure(folder: Path, layers: int, workers: int, rounds: int) -> list[dict[str, Any]]:
    source = folder / "llama-3b"
    with multiprocessing.get_context("spawn").Pool(1) as other:  # a child inherits its parent's peak memory
        size = other.apply(synthetic_llama, (source, layers))
    tool = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py")]
    options = ["--workers", str(workers)]
    megatron, back, copy = folder / "megatron", folder / "back", folder / "copy"
    directions = {
        "hf-to-megatron": (source, megatron, ["--hf", str(source), "--megatron", str(megatron)]),
        "megatron-to-hf": (megatron, back, ["--megatron", str(megatron), "--hf", str(back)]),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in directions}
    for _ in range(rounds):
        for path in (megatron, back):
            shutil.rmtree(path, ignore_errors=True)
        for name, (read, written, folders) in directions.items():
            _into_page_cache(read)
            cp, _ = _run(["cp", "-r", str(read), str(copy)])
            shutil.rmtree(copy)
            _into_page_cache(read)
            seconds, peak = _run([*tool, name, *folders, *options])
            assert written.exists()
            found[name].append({"cp": cp, "seconds": seconds, "peak": peak})
    cmp = subprocess.run(["cmp", source / "model-00001-of-00002.safetensors",
                          back / "model-00001-of-00002.safetensors"], check=False)  # fmt: skip
    assert cmp.returncode == 0, "the model that came back is not the one that went"
    return [_row(name, runs, size, workers) for name, runs in found.items()]


def _row(name: str, runs: list[dict[str, float]], size: int, workers: int) -> dict[str, Any]:
    seconds, cp = (statistics.median(run[key] for run in runs) for key in ("seconds", "cp"))
    return {
        "direction": name,
        "gigabytes": size / 1e9,
        "seconds": seconds,
        "gigabytes_per_second": size / 1e9 / seconds,
        "cp_seconds": cp,
        "ratio_to_cp": seconds / cp,
        "peak_memory_gb": max(run["peak"] for run in runs),
        "workers": workers,
        "rounds": runs,
    } | hardware()


def _into_page_cache(folder: Path) -> None:
    """And nothing else on its way to the disk, nor freed memory at hand."""
    os.sync()
    time.sleep(PAUSE)
    for file in folder.rglob("*"):
        if file.is_file():
            subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)


def synthetic_llama(folder: Path, layers: int) -> int:
    """Random weights in Llama-3.2-3B's shape, bf16, written tensor by tensor; bytes of the tensors."""
    config = LlamaConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    plans = [TensorPlan(name, shape, torch.bfloat16) for name, shape in hf_shapes(read_hf_model(folder))]
    writer = SafetensorsWriter(folder, plans)
    writer.create()
    for plan in plans:
        writer.write(plan.name, torch.randn(plan.shape, dtype=torch.bfloat16))
    return sum(plan.nbytes for plan in plans)


def _run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak memory in GB) of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
