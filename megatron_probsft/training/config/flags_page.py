"""The page of all flags, made from the fields of the settings.

python -m megatron_probsft.training.config.flags_page > docs/flags.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from megatron_probsft.training.config.arguments import default_text
from megatron_probsft.training.config.config import Setting, group_types, settings
from megatron_probsft.training.config.flag import Limits, dashed, number_text

_HEAD = """# Flags

All flags of `probsft train` and `torchrun … -m megatron_probsft.train`. The keys of a YAML file for
`--config` have the same names, with `_` or `-` between their words; flags win over the file. A run writes all
of its settings into `train_config.yaml`, which is such a file.

`--dry-run` checks the settings, lists every problem and trains nothing. Where the last column says *same*, a
resumed run (`--load`) must have the same value as the run before, unless `--allow-changed` names the flag;
where it says *fixed*, always; a flag whose default depends on the device then has the value of that run.

*This page is made by `python -m megatron_probsft.training.config.flags_page`: change the help there.*
"""


def page() -> str:
    """Return the page as Markdown: a section for each group of settings, a table row for each flag."""
    return "\n".join([_HEAD, *(line for group in group_types() for line in _section(group))]) + "\n"


def _section(group: str) -> Iterator[str]:
    yield f"## {group}\n"
    yield f"{group_types()[group].__doc__}\n"
    yield "| flag | values | default | what it does | on resume |"
    yield "|---|---|---|---|---|"
    for setting in settings().values():
        if setting.group == group:
            cells = (
                _name(setting),
                _values(setting),
                _default(setting),
                _text(setting),
                setting.flag.resume or "",
            )
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _name(setting: Setting) -> str:
    name = dashed(setting.name)
    both = setting.kind is bool and (setting.default or setting.flag.by_device)
    return f"`--{name}` `--no-{name}`" if both else f"`--{name}`"


def _values(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind = {bool: "on or off", int: "whole number", float: "number", str: "text"}[setting.kind]
    if setting.is_list:
        kind = "one or more " + {float: "numbers", str: "texts"}[setting.kind]
    return f"{kind}{_limits(setting.flag.limits)}"


def _limits(limits: Limits) -> str:
    signs = {"above": ">", "at_least": "≥", "below": "<"}
    found = [f"{sign} {number_text(limits[key])}" for key, sign in signs.items() if key in limits]
    return f" {' and '.join(found)}" if found else ""


def _default(setting: Setting) -> str:
    if setting.flag.by_device:
        return setting.flag.by_device
    if setting.kind is bool:
        return "on" if setting.default else "off"
    text = default_text(setting)
    return f"`{text}`" if text else ""


def _text(setting: Setting) -> str:
    flag, more = setting.flag, ""
    if flag.belongs_to:
        more += f" It belongs to --{dashed(flag.belongs_to)}."
    if flag.excludes:
        more += f" It cannot be given together with --{dashed(flag.excludes)}."
    return re.sub(r"--[a-z][a-z0-9-]*", r"`\g<0>`", flag.help + more)


if __name__ == "__main__":
    sys.stdout.write(page())
