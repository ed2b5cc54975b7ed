"""A model's folder, looked at without transformers, which takes seconds to import."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_probsft.runtime.errors import UserError

_SAMPLED = 1 << 16  # bytes at both ends of each weight file: training changes every one of them


def check_model_folder(model: Path) -> None:
    """UserError unless it is a folder with a config.json."""
    if not (model / "config.json").is_file():
        what = "has no config.json" if model.is_dir() else "is no folder"
        raise UserError(f"--model {model} {what}: give a Hugging Face model folder")


def fingerprint(model: Path) -> str:
    """A digest of the config and of parts of the weights: it tells models apart, also under one name."""
    total = hashlib.blake2b((model / "config.json").read_bytes(), digest_size=8)
    for file in sorted([*model.glob("*.safetensors"), *model.glob("*.bin")]):
        size = file.stat().st_size
        with file.open("rb") as stream:
            total.update(f"{file.name}/{size}".encode() + stream.read(_SAMPLED))
            stream.seek(max(0, size - _SAMPLED))
            total.update(stream.read(_SAMPLED))
    return total.hexdigest()
