"""Messages about checkpoint folders that need no training to provoke: one line that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint, hf_folder_of
from megatron_probsft.checkpoint.megatron.torch_dist import load_checkpoint
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.start.inputs import find_model
from megatron_probsft.training.start.problems import Problems
from megatron_probsft.training.start.resume import look_at

BACKEND = '{"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}'
NO_DATA: Any = ""  # what is refused before the data are looked at


def _checkpoint(folder: Path, files: dict[str, str] | None = None) -> Path:
    """A folder of a checkpoint with these files, `metadata.json` beside them."""
    checkpoint = folder / "iter_0000003"
    checkpoint.mkdir()
    for name, text in ({"metadata.json": "{}"} | (files or {})).items():
        (checkpoint / name).write_text(text)
    return checkpoint


def _without_metadata(folder: Path) -> Any:
    (_checkpoint(folder) / "metadata.json").unlink()
    return find_checkpoint(folder, 3)


def _pointer(folder: Path, text: str) -> Any:
    _checkpoint(folder)
    (folder / "latest_checkpointed_iteration.txt").write_text(text)
    return find_checkpoint(folder)


def _config(folder: Path, *more: str) -> Any:
    flags = f"--hf-model {folder} --data a.jsonl --save {folder}/run --train-iters 1 --seq-length 8"
    return parse_arguments([*flags.split(), "--global-batch-size", "1", *more])


def _other_settings(folder: Path) -> Any:
    config = _config(folder)
    saved = json.dumps({**config.flat(), "seed": config.batch.seed + 1})  # JSON is YAML
    return look_at(_checkpoint(folder, {"train_config.yaml": saved}), config, NO_DATA)


def _save_hf_exists(folder: Path) -> Any:
    (folder / "hf").mkdir()
    return find_model(_config(folder, "--save-hf", str(folder / "hf")), Problems())


CASES: dict[str, Callable[[Path], Any]] = {
    "checkpoint folder {0}/no does not exist": lambda f: find_checkpoint(f / "no"),
    "{0} holds no checkpoint": find_checkpoint,
    "{0} has no checkpoint of step 3: it has none": lambda f: find_checkpoint(f, 3),
    "{0}/iter_0000003 is not a complete checkpoint: it has no metadata.json; no whole one is before": (
        _without_metadata
    ),
    "{0}/latest_checkpointed_iteration.txt should hold a step number, it says 'newest'": lambda f: _pointer(
        f, "newest\n"
    ),
    "{0}/iter_0000007 is not a complete checkpoint: it has no metadata.json; --ckpt-step 3 takes the one": (
        lambda f: _pointer(f, "7")
    ),
    "{0}/iter_0000003 carries no Hugging Face config: put config.json in {0}/iter_0000003/hf": lambda f: (
        hf_folder_of(_checkpoint(f))
    ),
    "{0}/iter_0000003 was not written by this trainer: use it with --finetune": lambda f: look_at(
        _checkpoint(f), _config(f), NO_DATA
    ),
    "--seed was 1235 in {0}/iter_0000003 and is now 1234: give the same, --allow": _other_settings,
    "checkpoint {0}/iter_0000003 cannot be loaded: JSONDecodeError": lambda f: load_checkpoint(
        _checkpoint(f, {"metadata.json": "{"}), {"run": None}
    ),
    "checkpoint {0}/iter_0000003 cannot be loaded: AssertionError: meta": lambda f: load_checkpoint(
        _checkpoint(f, {"metadata.json": BACKEND}), {"run": None}
    ),
    "--save-hf {0}/hf exists: choose a new folder": _save_hf_exists,
}


@pytest.mark.parametrize("message", CASES)
def test_every_message(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        CASES[message](tmp_path)
    assert str(caught.value).startswith(message.format(tmp_path))
    assert "\n" not in str(caught.value)
