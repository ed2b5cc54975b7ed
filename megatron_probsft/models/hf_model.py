"""Hugging Face model folders, read. What is not one is refused before transformers is imported."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_probsft.models.families import family_of
from megatron_probsft.models.family import Family, ModelShape
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class HFModel:
    """A Hugging Face model folder with its config, its family and its sizes."""

    folder: Path
    config: PretrainedConfig
    family: Family
    shape: ModelShape


def read_hf_model(folder: str | Path) -> HFModel:
    """The model of a Hugging Face folder (or of a hub id, through transformers' cache), by its config.json.

    Raises:
        UserError: no config.json, an unsupported architecture or an unsupported field.
    """
    path, _, family = _open(folder)
    from transformers import AutoConfig  # here: it takes seconds, and most mistakes are found without it

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each config class has checks, and errors, of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{path / 'config.json'} is refused by transformers: {reason}") from None
    return HFModel(path, config, family, family.shape(config))


def read_raw_config(folder: str | Path) -> dict[str, Any]:
    """The content of config.json itself, without transformers' defaults. It takes milliseconds.

    Raises:
        UserError: no config.json, or an unsupported architecture.
    """
    return _open(folder)[1]


def _open(folder: str | Path) -> tuple[Path, dict[str, Any], Family]:
    path = Path(folder)
    if not (path / "config.json").is_file():
        if path.exists() or str(folder).startswith((".", "/")) or str(folder).count("/") != 1:
            raise UserError(f"{folder} is not a Hugging Face model folder: it has no config.json")
        path = _download(str(folder))
    raw = read_json_object(path / "config.json")
    architectures = raw.get("architectures") or ["(none)"]
    if not isinstance(architectures, list):
        raise UserError(f"{path / 'config.json'}: architectures must be a list, got {architectures!r}")
    return path, raw, family_of(str(architectures[0]))


@functools.cache  # it asks the hub each time
def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id!r} is neither a folder with config.json nor a model the hub could give "
            f"({type(error).__name__}); give a local folder or check the network"
        ) from error
