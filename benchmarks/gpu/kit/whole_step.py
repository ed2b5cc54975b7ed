"""Whole training steps of a random model: this trainer's, and the same with Megatron-Core's own loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.kit.model_folder import QWEN2_5_1_5B, TINY, Chats, save_folder, words
from benchmarks.gpu.kit.place import Place
from benchmarks.peers import peers
from megatron_probsft.runtime.distributed import tensor_group
from megatron_probsft.training import step as trainer_step
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.log.flops import model_flops
from megatron_probsft.training.start import open_run as opening
from megatron_probsft.training.start.inputs import find_model
from megatron_probsft.training.start.problems import Problems
from megatron_probsft.vocab_parallel.head_parts import OutputHead, Supervision, Tokens


@dataclass(frozen=True)
class Sizes:
    """A model with a step's samples."""

    model: dict[str, Any]
    seq_length: int
    batch: int
    chats: Chats
    rounds: int
    """Timed steps, after `warmup` ones."""
    warmup: int


def sizes(place: Place) -> Sizes:
    if place.small:
        return Sizes(TINY, 256, 4, Chats(40, 40, 200, words(TINY)), rounds=2, warmup=1)
    return Sizes(QWEN2_5_1_5B, 8192, 64, Chats(720, 400, 8000, words(QWEN2_5_1_5B)), rounds=8, warmup=3)


class WholeStep:
    """A run of this trainer on one device, opened as its loop opens it, its weights made on the device."""

    def __init__(self, place: Place, folder: Path, *, data_only: bool = False) -> None:
        """data_only: its batches are for another loop, and no model is built."""
        self.sizes = sizes(place)
        save_folder(folder / "model", self.sizes.model, weights=False)
        data = self.sizes.chats.write(folder / "train.jsonl")
        config = TrainConfig.of(
            hf_model=str(folder / "model"), data=[str(data)], save=str(folder / "run"), bf16=True,
            num_workers=1, data_cache_path=str(folder / "cache"), objective="original",
            seq_length=self.sizes.seq_length, global_batch_size=self.sizes.batch, train_iters=10**6, lr=1e-5,
            lr_decay_style="constant",
        )  # fmt: skip
        if data_only:
            problems = Problems()
            config, inputs = opening.open_inputs(config, find_model(config, problems))
            self.batches = opening.plan_steps(config, inputs, None, (0, 1), problems).batches
            self.shape = inputs.hf.shape
            return
        opening.load_hf_weights = _random_weights
        self._run = opening.open_run(config)
        self.batches, self.shape = self._run.batches, self._run.inputs.hf.shape

    def step(self, batch: StepBatch) -> float:
        """Do the step and return its loss, the mean over its supervised tokens."""
        return trainer_step.train_step(self._run.state, batch, self._run.criterion).means.loss


def _random_weights(gpt: list[torch.nn.Module], _: Any) -> None:
    """Fill a model as a new one is, in place of reading a folder's weights."""
    torch.manual_seed(0)
    with torch.no_grad():
        for chunk in gpt:
            for name, parameter in chunk.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.02)
                else:  # a bias, or a norm's weight
                    parameter.fill_(0 if name.endswith("bias") else 1)


def use_megatron_loss(place: Place, peer: str) -> None:
    """Let this process's steps compute one of Megatron-Core's losses, by its name in `benchmarks.peers`.

    As `GPTModel.compute_language_model_loss` has it: every token goes through the head, and the positions
    without a label are masked after the loss.
    """

    def supervised_loss(
        hidden_states: torch.Tensor, head: OutputHead, supervision: Supervision, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, Tokens]:
        logits = F.linear(hidden_states.flatten(0, 1), head.weight)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        labels[supervision.rows] = supervision.labels
        log_probs = peers(place.device, head.vocab_size, with_compiled=True)[peer]
        log_p = log_probs(logits, labels, tensor_group())[supervision.rows]
        return -log_p.sum(), Tokens(-log_p.detach(), log_p.detach(), {})

    trainer_step.supervised_loss = supervised_loss  # type: ignore[assignment]


@dataclass
class Timing:
    """The measured steps of one implementation."""

    seconds: list[float]
    supervised: int
    flops: float
    peak_bytes: int
    first_loss: float = math.nan
    """Of a new model: near log V for all, whose weights differ, or they do different work."""


def timed_steps(whole: WholeStep, step: Callable[[StepBatch], float | torch.Tensor]) -> Timing:
    """Take `sizes.rounds` steps by the clock; a step's batch is made before its clock starts."""
    found = Timing([], 0, 0.0, 0)
    consumed = 0
    for number in range(whole.sizes.warmup + whole.sizes.rounds):
        batch = whole.batches.training_step(consumed)
        consumed += batch.samples
        if number == whole.sizes.warmup and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        _synchronize()
        started = time.perf_counter()
        loss = step(batch)
        _synchronize()
        if number == 0:
            found.first_loss = float(loss)
        if number >= whole.sizes.warmup:
            supervised = sum(one.supervised_tokens for one in batch.micro_batches)
            found.seconds.append(time.perf_counter() - started)
            found.supervised += supervised
            found.flops += model_flops(whole.shape, batch.lengths, supervised)
    if torch.cuda.is_initialized():
        found.peak_bytes = torch.cuda.max_memory_allocated()
    return found


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
