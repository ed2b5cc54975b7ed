"""Recipes of FP8: settings without effect here."""

from __future__ import annotations

import enum
from typing import Any


class Format(enum.Enum):
    E4M3 = "e4m3"
    HYBRID = "hybrid"


class Recipe:
    def __init__(self, **settings: Any) -> None:  # pydantic's dataclasses pass over what they do not know
        self.__dict__.update(settings)

    def delayed(self) -> bool:
        return isinstance(self, DelayedScaling)


class DelayedScaling(Recipe): ...


class Float8CurrentScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...
