"""How full are the packs, and what does planning a step cost?

    python benchmarks/packing.py --json FILE

An epoch of reasoning-gym's gsm_symbolic and figlet_font samples, tokenized by SmolLM2 with its chat template;
efficiency is real tokens ÷ computed tokens over all data-parallel ranks.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import hardware, show, write_json
from megatron_probsft.data.order import sample_indices
from megatron_probsft.data.packing import plan_step

COLUMNS = {
    "data": "{data}",
    "samples": "{samples}",
    "tokens mean (max)": "{mean_tokens:.0f} ({max_tokens})",
    "DP": "{dp}",
    "efficiency": "{efficiency:.2%}",
    "worst step": "{worst_step:.2%}",
    "plan ms median (max)": "{plan_ms_median:.2f} ({plan_ms_max:.2f})",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", default="runs/models/SmolLM2-135M-Instruct", help="model folder")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--dp", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    records = []
    for data in ("gsm_symbolic", "figlet_font"):
        lengths = _lengths(data, args.samples, args.tokenizer)
        records += [_measure(data, lengths, dp, args.global_batch_size, args.seq_length) for dp in args.dp]
    show(f"packing, global batch {args.global_batch_size}, seq-length {args.seq_length}", COLUMNS, records)
    write_json(args.json, records)


def _measure(data: str, lengths: np.ndarray, dp: int, batch: int, seq_length: int) -> dict[str, Any]:
    efficiencies, seconds, real, computed = [], [], 0, 0
    for step in range(len(lengths) // batch):
        chosen = lengths[sample_indices(step * batch, batch, len(lengths), seed=1)] - 1
        start = time.perf_counter()
        plan = plan_step(chosen, dp, seq_length)
        seconds.append(time.perf_counter() - start)
        total = sum(len(packs) for packs in plan.packs) * plan.pack_length
        efficiencies.append(chosen.sum() / total)
        real, computed = real + int(chosen.sum()), computed + total
    return {
        "data": data, "samples": len(lengths), "mean_tokens": float(lengths.mean()),
        "max_tokens": int(lengths.max()), "dp": dp, "global_batch_size": batch, "seq_length": seq_length,
        "efficiency": real / computed, "worst_step": float(min(efficiencies)),
        "plan_ms_median": 1e3 * float(np.median(seconds)), "plan_ms_max": 1e3 * max(seconds), **hardware(),
    }  # fmt: skip


def _lengths(data: str, samples: int, tokenizer_folder: str) -> np.ndarray:
    import reasoning_gym
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = []
    for item in reasoning_gym.create_dataset(data, size=samples, seed=1):
        chat = [
            {"role": "user", "content": item["question"]},
            {"role": "assistant", "content": item["answer"]},
        ]
        texts.append(tokenizer.apply_chat_template(chat, tokenize=False))
    return np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])


if __name__ == "__main__":
    main()
