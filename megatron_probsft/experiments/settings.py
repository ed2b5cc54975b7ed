"""Settings of training and scoring in a domain: as in the paper, and in small for smollm2-135m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_probsft.domains.registry import get_domain
from megatron_probsft.experiments.models import SMOLLM2, Model
from megatron_probsft.runtime.errors import UserError

Flags = dict[str, Any]
"""Names of flags with underscores, without the leading dashes."""


@dataclass(frozen=True)
class SweepSettings:
    """The flags of each command of a sweep, before the command line changes them."""

    prepare: Flags
    train: Flags
    evaluate: Flags
    probe_samples: int


# arXiv 2510.00526 and its public code. In packs the micro-batch only says how many tokens are held at a time.
_TRAIN = {
    "bf16": True, "train_epochs": 1, "global_batch_size": 256, "lr_decay_style": "cosine",
    "lr_warmup_fraction": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "clip_grad": 1.0,
    "save_interval": 50, "most_recent_k": 1,
}  # fmt: skip

# A few minutes on two CPU cores, with data that need no hub.
_SMALL_TRAIN = {
    "train_iters": 8, "global_batch_size": 16, "micro_batch_size": 2, "save_interval": 4,
}  # fmt: skip
_SMALL_PREPARE = {"generate": True, "train": 160, "validation": 32, "test": 32}


def settings_for(dataset: str, model: Model, *, paper: bool, gpus: int) -> SweepSettings:
    """The defaults that flags may change.

    Args:
        paper: as the paper's code computes, its micro-batch denominator and double templates included.
        gpus: that the run has; 0: it runs on the CPU.

    Raises UserError: no such domain; `paper` in a domain that is not the paper's.
    """
    domain = get_domain(dataset)
    numbers = domain.experiment
    train = _TRAIN | {
        "seq_length": numbers.seq_length, "micro_batch_size": numbers.micro_batch_size,
        "weight_decay": numbers.weight_decay, "lr": model.lr, "truncation": "drop",
    }  # fmt: skip
    sampled: Flags = {"samples": domain.samples, "temperature": domain.temperature}
    evaluate = (sampled if domain.samples > 1 else {}) | {"max_new_tokens": domain.max_new_tokens}
    prepare: Flags = {}
    small = model.name == SMOLLM2
    if small:
        del train["train_epochs"]
        train |= _SMALL_TRAIN | {"seq_length": numbers.small_seq_length}
        prepare = _SMALL_PREPARE
        greedy: Flags = {"temperature": 0.0} if domain.temperature else {}
        evaluate = {"dtype": "bfloat16"} | greedy | {"max_new_tokens": numbers.small_max_new_tokens}
    if paper:
        if numbers.paper_micro_batch_size is None:
            raise UserError(
                f"--paper trains as the paper's code does, and {dataset} is no domain of the paper's"
            )
        train |= {
            "packing": False, "loss_denominator": "microbatch-sum", "truncation": "right",
            "micro_batch_size": numbers.paper_micro_batch_size,
        }  # fmt: skip
    if gpus:
        train["use_distributed_optimizer"] = True
    return SweepSettings(prepare, train, evaluate, probe_samples=64 if small else 1000)
