"""The ends of turns that a model was trained for, written into its Hugging Face folder.

Servers read `generation_config.json`, and the chat template. `trained_turns.json` is for ourselves: it tells
an export's stops from those of a model that came from elsewhere. From a checkpoint, whose tokenizer files
stay as they came (a resumed run compares them), it carries what an export needs to be read as in training.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object

RECORD = "trained_turns.json"
_GENERATION = "generation_config.json"
_OF_CONFIG = ("bos_token_id", "eos_token_id", "pad_token_id")  # what config.json says of generation


@dataclass(frozen=True)
class TrainedTurns:
    """The end of turns as one training run saw them, and what servers need to render turns as it did."""

    template: str
    """The run's `--template`."""
    ends: dict[str, int]
    """Token to id: the tokens that end trained turns, those of earlier runs included."""
    chat_template: str | None
    """Jinja source of the chat template that an export gets; None where the folder's own is right."""
    date: str | None = None
    """YYYY-MM-DD that the chat template showed as today's; None where it shows none."""
    tokenizer_class: str | None = None
    """The class that tokenizer_config.json of an export names; None where the folder's own is right."""


def read_record(folder: Path) -> TrainedTurns | None:
    """The folder's record; None for a model that was not trained here. Raises UserError if it is damaged."""
    file = folder / RECORD
    try:
        return TrainedTurns(**json.loads(file.read_text())) if file.is_file() else None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def generation_ends(folder: Path) -> list[int] | None:
    """`eos_token_id` of generation_config.json; None without this file: a server then asks the config.

    Raises UserError for a damaged file.
    """
    file = folder / _GENERATION
    return _ends(read_json_object(file), file) if file.is_file() else None


def add_record(folder: Path, turns: TrainedTurns) -> None:
    """Write into a copy of a model's files how its turns end from now on.

    `eos_token_id` in generation_config.json becomes the union of what it is (else of config.json's) and the
    ends; all else in it stays. A missing file is written with what is read from config.json in its place.

    Raises:
        UserError: a damaged file.
    """
    before = read_record(folder)
    ends = {**(before.ends if before else {}), **turns.ends}
    _write(folder / RECORD, asdict(replace(turns, ends=ends)))
    file, config = folder / _GENERATION, folder / "config.json"
    of_model = read_json_object(config)
    if file.is_file():
        settings = read_json_object(file)
    else:
        settings = {key: of_model[key] for key in _OF_CONFIG if of_model.get(key) is not None}
    known = _ends(settings, file) or _ends(of_model, config)
    new = sorted(set(turns.ends.values()) - set(known))
    if new:
        settings["eos_token_id"] = [*known, *new]
        _write(file, settings)


def fit_for_servers(folder: Path) -> None:
    """Put the recorded chat template and tokenizer class, if any, in place of those of an exported folder.

    The record then has none: the folder may be edited from here on.
    """
    record = read_record(folder)
    if record is None or (record.chat_template is None and record.tokenizer_class is None):
        return
    file = folder / "tokenizer_config.json"
    before = read_json_object(file) if file.is_file() else {}
    settings = dict(before)
    if record.chat_template is not None:
        (folder / "chat_template.jinja").write_text(record.chat_template)
        (folder / "chat_template.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
        if "chat_template" in settings:  # read by software that does not know the .jinja file
            settings["chat_template"] = record.chat_template
    if record.tokenizer_class is not None:
        settings["tokenizer_class"] = record.tokenizer_class
    if settings != before:
        _write(file, settings)
    _write(folder / RECORD, asdict(replace(record, chat_template=None, tokenizer_class=None)))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _ends(settings: dict[str, Any], file: Path) -> list[int]:
    found = settings.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(one) is int for one in ends):  # true is none
        raise UserError(f"{file}: eos_token_id must be a token's id or a list of them, got {found!r}")
    return ends
