"""Conversions in forked processes, and model folders with other tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from megatron_probsft.checkpoint.convert import Conversion, hf_to_megatron, megatron_to_hf
from megatron_probsft.runtime import distributed
from tests.support.ranks import run_ranks

WEIGHTS = "model.safetensors"


def converted_here(function: Callable[..., Conversion], *args: Any, **settings: Any) -> Conversion:
    """Convert in this process, a forked one."""
    torch.set_num_threads(1)  # a forked process has lost its parent's threads
    distributed.initialize()
    return function(*args, **settings)


def to_megatron(hf: Path, run: Path, **settings: Any) -> Conversion:
    """Convert in a process of its own."""
    return run_ranks(1, lambda: converted_here(hf_to_megatron, hf, run, **settings))[0]


def to_hf(run: Path, hf: Path, **settings: Any) -> Conversion:
    """Convert in a process of its own."""
    return run_ranks(1, lambda: converted_here(megatron_to_hf, run, hf, **settings))[0]


def changed_copy(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model folder with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target
