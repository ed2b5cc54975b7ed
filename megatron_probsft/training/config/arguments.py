"""Command line and YAML to a checked `TrainConfig`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.training.config.config import Setting, TrainConfig, group_types, settings
from megatron_probsft.training.config.flag import dashed, meant
from megatron_probsft.training.config.rules import settings_problems


def parse_arguments(argv: list[str] | None = None) -> TrainConfig:
    """Return the settings that flags and the YAML file of `--config` give; flags win.

    Raises:
        UserError: an unknown flag or key (with the nearest right one), a value of the wrong type; and, unless
            --dry-run is given, which lists all problems, the first of `settings_problems`.
    """
    parser = Parser(
        prog="megatron_probsft.train",
        usage="%(prog)s [--config FILE] --hf-model MODEL --data FILE --save FOLDER --train-epochs X [flags]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", default=None, help="This YAML file holds settings under the same names; flags win."
    )
    add_flags(parser, settings())
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = _read_yaml(Path(path)) if path else {}
    values.update(given)
    config = TrainConfig.of(**values)
    if not config.preview.dry_run:
        check(config)
    return config


def check(config: TrainConfig) -> None:
    """Refuse settings that are wrong whatever the model, the data and the objective are.

    Raises:
        UserError: the first problem found.
    """
    for problem in settings_problems(config):
        raise UserError(problem)


def add_flags(parser: argparse.ArgumentParser, names: Collection[str], title: str = "") -> None:
    """Add the trainer's flags of these names, in groups whose titles begin with `title`.

    Those that are not given on a command line are not in the parsed result.
    """
    for group, kind in group_types().items():
        members = [one for one in settings().values() if one.group == group and one.name in names]
        if members:
            target = parser.add_argument_group(f"{title}{group}", kind.__doc__)
            for setting in members:
                _add_flag(target, setting)


class Parser(argparse.ArgumentParser):
    """A parser that raises a `UserError` with the nearest right flag, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0].partition("=")[0]
            message = f"unknown flag {unknown}; {meant(unknown, self._option_string_actions)}"
        raise UserError(message)


def default_text(setting: Setting) -> str:
    """Return the default as a reader of --help sees it; nothing where the help says what happens without."""
    if setting.flag.by_device:
        return setting.flag.by_device
    return "" if setting.default in (None, "", []) else str(setting.default)


def _add_flag(target: argparse._ArgumentGroup, setting: Setting) -> None:
    default = default_text(setting)
    text = f"{setting.flag.help} (default: {default})" if default else setting.flag.help
    options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if setting.kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options.update(type=setting.kind, choices=setting.choices, nargs="+" if setting.is_list else None)
        options["metavar"] = {int: "N", float: "X"}.get(setting.kind)
    target.add_argument(f"--{dashed(setting.name)}", dest=setting.name, **options)


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml_mapping(path, "--config")
    if not content:
        raise UserError(f"--config {path} must hold keys and values, e.g. `lr: 5.0e-5`")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in settings():
            raise UserError(f"--config {path}: unknown key {key!r}; {meant(name, settings())}")
        values[name] = _convert(settings()[name], value, path)
    return values


def _convert(setting: Setting, value: Any, path: Path) -> Any:
    kind = setting.kind
    if value is None and setting.default is None:
        return None
    if setting.is_list:
        try:
            return [kind(item) for item in (value if isinstance(value, list) else [value])]
        except (TypeError, ValueError):
            raise UserError(
                f"--config {path}: {setting.name} should hold {kind.__name__}s, got {value!r}"
            ) from None
    wrong = f"--config {path}: {setting.name} should be {kind.__name__}, got {value!r}"
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise UserError(wrong)
        return value
    try:
        converted = kind(value)  # YAML reads 5e-5 as text
    except (TypeError, ValueError):
        raise UserError(wrong) from None
    if (kind is int and converted != value) or (kind is str and not isinstance(value, str)):
        raise UserError(wrong)
    choices = setting.choices
    if choices and converted not in choices:
        raise UserError(f"--config {path}: {setting.name} must be one of {', '.join(choices)}, got {value!r}")
    return converted
