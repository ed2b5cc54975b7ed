"""What a model is trained and scored with in a domain: as in the paper, and in small for smollm2-135m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_probsft.experiments.models import SMOLLM2, Model

DATASETS = ("math", "medical", "figfont")

Flags = dict[str, Any]
"""Names of flags with underscores, without the leading dashes."""


@dataclass(frozen=True)
class Settings:
    prepare: Flags
    """tools/prepare_data.py"""
    train: Flags
    """megatron_probsft.train"""
    evaluate: Flags
    """tools/evaluate.py"""
    probe_samples: int


# arXiv 2510.00526 and its public code. In packs the micro-batch only says how many tokens are held at a time.
_TRAIN = {
    "bf16": True, "train_epochs": 1, "global_batch_size": 256, "lr_decay_style": "cosine",
    "lr_warmup_fraction": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "clip_grad": 1.0,
    "save_interval": 50, "most_recent_k": 1,
}  # fmt: skip
_TRAIN_ON: dict[str, Flags] = {
    "math": {"seq_length": 3072, "micro_batch_size": 1, "weight_decay": 0.01},
    "medical": {"seq_length": 800, "micro_batch_size": 4, "weight_decay": 0.01},
    "figfont": {"seq_length": 800, "micro_batch_size": 4, "weight_decay": 1e-5},
}
_EVALUATE_ON: dict[str, Flags] = {
    "math": {"samples": 16, "temperature": 1.0, "max_new_tokens": 4096},
    "medical": {"max_new_tokens": 8000},
    "figfont": {"max_new_tokens": 5},
}

# Its code's micro-batches, which its denominator depends on, each sample padded by itself.
_PAPER_MICRO_BATCH = {"math": 4, "medical": 16, "figfont": 16}

# A few minutes on two CPU cores, with data that need no hub.
_SMALL_TRAIN = {
    "train_iters": 8, "global_batch_size": 16, "micro_batch_size": 2, "save_interval": 4,
}  # fmt: skip
_SMALL_SEQ_LENGTH = {"math": 1024, "medical": 512, "figfont": 800}
_SMALL_EVALUATE: dict[str, Flags] = {
    "math": {"temperature": 0.0, "max_new_tokens": 160},
    "medical": {"max_new_tokens": 80},
    "figfont": {"max_new_tokens": 8},
}
_SMALL_PREPARE = {"generate": True, "train": 160, "validation": 32, "test": 32}


def settings_for(dataset: str, model: Model, *, paper: bool, gpus: int) -> Settings:
    """The defaults that flags may change.

    Args:
        paper: as the paper's code computes, its micro-batch denominator and double templates included.
        gpus: that the run has; 0: it runs on the CPU.
    """
    small = model.name == SMOLLM2
    train = _TRAIN | _TRAIN_ON[dataset] | {"lr": model.lr, "truncation": "drop"}
    evaluate = _EVALUATE_ON[dataset]
    prepare: Flags = {}
    if small:
        del train["train_epochs"]
        train |= _SMALL_TRAIN | {"seq_length": _SMALL_SEQ_LENGTH[dataset]}
        prepare = _SMALL_PREPARE
        evaluate = {"dtype": "bfloat16"} | _SMALL_EVALUATE[dataset]
    if paper:
        train |= {
            "packing": False, "loss_denominator": "microbatch-sum", "truncation": "right",
            "micro_batch_size": _PAPER_MICRO_BATCH[dataset],
        }  # fmt: skip
    if gpus:
        train["use_distributed_optimizer"] = True
    return Settings(prepare, train, evaluate, probe_samples=64 if small else 1000)
