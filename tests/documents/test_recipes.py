"""The recipes: every key is a flag with its type and true default behind it, and the values parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_probsft.training.config.arguments import parse_arguments
from tests.documents.place import GIVEN, defaults_of
from tests.support.documents import ROOT

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
# key: value  # type, default: meaning
_LINE = re.compile(r"^(?P<key>\w+): .+? +# (?P<type>[^,]+), (?P<default>\S+): .{5,}$")
_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _lines(recipe: Path) -> list[re.Match[str]]:
    lines = [line for line in recipe.read_text().splitlines() if line and not line.startswith("#")]
    found = [_LINE.match(line) for line in lines]
    for line, match in zip(lines, found, strict=True):
        assert match is not None, f"{recipe.name}: not `key: value  # type, default: meaning`: {line}"
    return [match for match in found if match is not None]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_keys_and_values_are_the_trainers(recipe: Path) -> None:
    parse_arguments(["--config", str(recipe)])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_key_is_explained(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    matches = _lines(recipe)
    assert [match["key"] for match in matches] == list(content)
    for match in matches:
        _check_type(content[match["key"]], match["type"], f"{recipe.name}: {match['key']}")


@pytest.mark.size("test")
def test_the_defaults_are_true(whole_place: Path) -> None:
    """Those that a run without the keys writes into its train_config.yaml."""
    defaults = defaults_of(whole_place / "runs" / "first")
    for recipe in RECIPES:
        for match in _lines(recipe):
            if match["default"] == "required":
                assert match["key"] in ("data", "save")
                continue
            said = None if match["default"] == "none" else yaml.safe_load(match["default"])
            assert said == (defaults | GIVEN)[match["key"]], f"{recipe.name}: {match['key']}"


def _check_type(value: Any, type_: str, place: str) -> None:
    if " | " in type_:
        assert value in type_.split(" | "), place
    elif type_.startswith("list of "):
        assert isinstance(value, list), place
        for one in value:
            _check_type(one, type_.removeprefix("list of "), place)
    else:
        assert isinstance(value, _TYPES[type_]), place
