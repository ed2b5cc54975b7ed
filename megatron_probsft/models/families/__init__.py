"""The families, one file each: every file in this folder that makes a FAMILY is found."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from megatron_probsft.models.family import Family
from megatron_probsft.runtime.errors import UserError


def family_of(architecture: str) -> Family:
    """The family that serves an architecture, as config.json names it.

    Raises:
        UserError: the architecture is not supported; the message lists those that are.
    """
    for family in families():
        if architecture in family.architectures:
            return family
    supported = ", ".join(name for family in families() for name in family.architectures)
    raise UserError(f"model architecture {architecture!r} is not supported; supported: {supported}")


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)
