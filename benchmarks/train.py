"""How fast does it train? SmolLM2 against TRL and plain transformers loops: samples, threads, bf16 the same.

    python benchmarks/train.py --json FILE

`megatron_probsft` is this trainer at TP 1; `pad_to_max` a plain transformers loop that pads every sample to
--max-length, as the public code of arXiv 2510.00526 does; `pad_to_longest` the same padding to the longest
of its micro-batch; `trl` TRL's SFTTrainer with its own chunked loss and collator. Each round gives every one
of them the same global batch; medians over rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import hardware, show, write_json
from benchmarks.trl_peer import TRLPeer
from megatron_probsft.data.order import sample_indices
from megatron_probsft.runtime import distributed
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.open_run import open_run
from megatron_probsft.training.step import train_step

COLUMNS = {
    "implementation": "{implementation}",
    "data": "{data}",
    "seconds per step": "{seconds_per_step:.2f}",
    "supervised tokens/s": "{supervised_tokens_per_second:.1f}",
    "÷ pad to max": "{ratio_to_pad_to_max:.2f}",
    "÷ pad to longest": "{ratio_to_pad_to_longest:.2f}",
    "÷ TRL": "{ratio_to_trl}",
}
DATA = {"word_problems": "gsm_symbolic", "figlet": "figlet_font"}
LR = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="runs/models/SmolLM2-135M-Instruct", help="Hugging Face folder")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=4, help="samples, of the transformers loops")
    parser.add_argument("--max-length", type=int, default=800, help="the paper's for its shorter domains")
    parser.add_argument("--rounds", type=int, default=3, help="timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = [record for data in args.data for record in _measure(data, args)]
    show(f"training {Path(args.model).name}, {hardware()['hardware']}", COLUMNS, records)
    write_json(args.json, records)


def _measure(data: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        _write_samples(file, DATA[data], args.global_batch_size * (args.rounds + 1))
        ours = _Ours(file, args)
        runs = {
            "megatron_probsft": ours,
            "pad_to_max": _Plain(ours, args, to_max=True),
            "pad_to_longest": _Plain(ours, args, to_max=False),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        tokens: list[int] = []

        def one_round(step: int) -> None:
            for name, run in runs.items():
                start = time.perf_counter()
                supervised = run.step(step)
                taken[name].append(time.perf_counter() - start)
            tokens.append(supervised)

        steps = range(args.rounds + 1)
        if importlib.util.find_spec("trl"):
            trl = TRLPeer([ours.samples(step) for step in steps], LR, args, Path(folder) / "trl")
            taken["trl"] = trl.train(before=one_round)
            if abs(trl.first_loss / ours.first_loss - 1) > 0.02:
                raise RuntimeError(f"TRL's first loss is {trl.first_loss}, ours {ours.first_loss}")
        else:
            print("trl is not installed: without it")
            for step in steps:
                one_round(step)
        ours.close()
    seconds = {name: times[1:] for name, times in taken.items()}
    speed = {name: sum(tokens[1:]) / sum(times) for name, times in seconds.items()}
    return [
        {
            "implementation": name, "data": data, "seconds_per_step": statistics.median(seconds[name]),
            "supervised_tokens_per_second": speed[name],
            "ratio_to_pad_to_max": speed[name] / speed["pad_to_max"],
            "ratio_to_pad_to_longest": speed[name] / speed["pad_to_longest"],
            "ratio_to_trl": round(speed[name] / speed["trl"], 3) if "trl" in speed else None,
            "global_batch_size": args.global_batch_size, "max_length": args.max_length, "dtype": "bf16",
            **hardware(),
        }
        for name in speed
    ]  # fmt: skip


class _Ours:
    """This trainer's own step, opened as `loop.run` opens it; `close` it before the next."""

    def __init__(self, file: Path, args: argparse.Namespace) -> None:
        self.config = TrainConfig.of(
            hf_model=args.model, data=[str(file)], save=str(file.with_suffix(".run")), bf16=True,
            seq_length=args.max_length, micro_batch_size=4, global_batch_size=args.global_batch_size,
            train_iters=args.rounds + 1, lr=LR, lr_decay_style="constant", truncation="drop",
        )  # fmt: skip
        self._run = open_run(self.config)
        self.store = self._run.inputs.train
        self.first_loss = math.nan

    def close(self) -> None:
        distributed.shutdown()

    def step(self, _: int) -> int:
        batch = self._run.batches.training_step(self._run.state.consumed_samples)
        means = train_step(self._run.state, batch, self._run.criterion).means
        if math.isnan(self.first_loss):
            self.first_loss = means.loss
        return means.tokens

    def samples(self, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(token ids, labels) of the step's samples, for the other loops."""
        size = self.config.batch.global_batch_size
        indices = sample_indices(step * size, size, len(self.store), self.config.batch.seed)
        found = []
        for index in indices:
            tokens, trained = self.store.sample(int(index))
            ids = torch.as_tensor(tokens.astype("int64"))
            found.append((ids, torch.where(torch.from_numpy(trained.copy()), ids, -100)))
        return found


class _Plain:
    """transformers' model, torch's AdamW, gradient accumulation: what most fine-tuning scripts do."""

    def __init__(self, ours: _Ours, args: argparse.Namespace, to_max: bool) -> None:
        from transformers import AutoModelForCausalLM

        self._ours, self._args, self._to_max = ours, args, to_max
        self._model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
        self._model.train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LR, betas=(0.9, 0.95))

    def step(self, step: int) -> int:
        samples = self._ours.samples(step)
        size = self._args.micro_batch_size
        supervised = sum(int((labels[1:] >= 0).sum()) for _, labels in samples)
        for first in range(0, len(samples), size):
            part = samples[first : first + size]
            longest = self._args.max_length if self._to_max else max(len(ids) for ids, _ in part)
            ids = torch.stack([F.pad(ids, (0, longest - len(ids))) for ids, _ in part])
            labels = torch.stack(
                [F.pad(labels, (0, longest - len(labels)), value=-100) for _, labels in part]
            )
            mask = torch.stack([(torch.arange(longest) < len(ids)).long() for ids, _ in part])
            logits = self._model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            (loss / supervised).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return supervised


def _write_samples(file: Path, dataset: str, count: int) -> None:
    import reasoning_gym

    items = reasoning_gym.create_dataset(dataset, size=count, seed=1)
    rows = [{"prompt": item["question"], "response": item["answer"]} for item in items]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
