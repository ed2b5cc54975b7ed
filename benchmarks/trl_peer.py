"""TRL's SFTTrainer in its own training loop, a step at a time, for `train.py`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Samples = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""(token ids, labels with −100 where a token is not trained) of a step."""


class TRLPeer:
    """SFTTrainer with its defaults: its chunked NLL, its collator, which pads to the micro-batch's longest.

    What is not its default: sequential order, the samples' own labels, weights in bfloat16 as in the other
    loops, no gradient checkpointing, which saves memory for time.
    """

    def __init__(self, steps: list[Samples], lr: float, args: argparse.Namespace, folder: Path) -> None:
        import datasets
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        samples = [sample for step in steps for sample in step]
        rows = {
            "input_ids": [ids.tolist() for ids, _ in samples],
            "labels": [labels.tolist() for _, labels in samples],
        }
        self._clock = _clock()
        self._trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16),
            SFTConfig(
                output_dir=str(folder), max_steps=len(steps), learning_rate=lr, lr_scheduler_type="constant",
                per_device_train_batch_size=args.micro_batch_size, max_length=args.max_length,
                gradient_accumulation_steps=math.ceil(args.global_batch_size / args.micro_batch_size),
                train_sampling_strategy="sequential", adam_beta2=0.95,
                gradient_checkpointing=False, bf16=False,
                logging_steps=1, save_strategy="no", disable_tqdm=True, report_to="none",
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[self._clock],
        )  # fmt: skip

    def train(self, before: Callable[[int], Any]) -> list[float]:
        """Call before(step), then let TRL take the step, for every step; return the seconds of TRL's.

        Its loop has collated a step's batch before its clock starts.
        """
        self._clock.before = before
        self._trainer.train()
        return self._clock.seconds

    @property
    def first_loss(self) -> float:
        """The mean over the first step's tokens, as it logs it."""
        return self._trainer.state.log_history[0]["loss"]


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.before: Callable[[int], Any] = lambda _: None
            self.seconds: list[float] = []
            self._started = math.nan

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.before(state.global_step)
            self._started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds.append(time.perf_counter() - self._started)

    return Clock()
