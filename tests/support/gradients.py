"""The gradients of one training step, of the trainer and of transformers, under Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.test_training_parity import _label_probabilities, _samples
from tests.support.training_runs import config_for, train, write_pairs

# Adam's first step is lr × g ÷ (|g| + eps): with an eps far above every |g|, plain steps of lr ÷ eps = 10.
_EPS, _STEP = 1e6, 10.0
_PLAIN_STEP: dict[str, Any] = {
    "adam_eps": _EPS, "lr": _STEP * _EPS, "lr_decay_style": "constant", "lr_warmup_iters": 0,
    "weight_decay": 0.0, "clip_grad": 0.0, "train_iters": 1,
}  # fmt: skip


def check_gradients(folder: Path, model: Path, **layout: Any) -> None:
    """A step of the trainer on two ranks moves every weight as one of transformers in float64 does."""
    data = write_pairs(folder / "train.jsonl", 8)
    settings = _PLAIN_STEP | {"tensor_model_parallel_size": 2, "save_hf": str(folder / "ours")} | layout
    train(2, config_for(folder / "run", model, data, **settings))
    _step_of_transformers(model, data, folder / "theirs")
    before, ours, theirs = (
        {name: tensor.double() for name, tensor in load_file(each / "model.safetensors").items()}
        for each in (model, folder / "ours", folder / "theirs")
    )
    assert ours.keys() == theirs.keys() == before.keys()
    for name in before:
        expected, found = ((before[name] - after[name]) / _STEP for after in (theirs, ours))
        largest = expected.abs().max().item()
        assert largest > 1e-6, name
        assert (found - expected).abs().max() < 1e-4 * largest, name


def _step_of_transformers(folder: Path, data: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    p = torch.cat([_label_probabilities(model, *sample) for sample in _samples(folder, data)])
    (-p.log().mean()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= _STEP * parameter.grad
    model.save_pretrained(target)
