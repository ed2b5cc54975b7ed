"""Small files of people and programs are read here, and what is wrong with one is told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megatron_probsft.runtime.errors import UserError


def read_text(file: Path, name: str = "") -> str:
    """Return a file's text; `name`, the flag that gives the file, stands before its path in messages.

    Raises:
        UserError: no such file, a folder, no permission, or not text in UTF-8.
    """
    shown = f"{name} {file}".lstrip()
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{shown} is a folder: a file is wanted") from None
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}") from None


def read_json_object(file: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises UserError as `read_text` does, and where it holds none."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def read_yaml_mapping(file: Path, name: str = "") -> dict[str, Any]:
    """Return a YAML file's keys and values, none if it is empty. Raises UserError as `read_json_object`."""
    shown = f"{name} {file}".lstrip()
    try:
        content = yaml.safe_load(read_text(file, name))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: 2020-13-45 is no date
        raise UserError(f"{shown} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{shown} must hold keys and values, got {type(content).__name__}")
    return content
