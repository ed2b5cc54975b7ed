"""A field of a settings group that is a command line flag: its help, its limits, its bonds to other flags."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any, Literal, TypedDict, Unpack

from megatron_probsft.runtime.suggestions import nearest


class Limits(TypedDict, total=False):
    """The values that a number may have; None and lists are not looked at."""

    above: float
    at_least: float
    below: float
    """Without it whole numbers must be below 2^31, which Megatron-Core and torch count with."""
    finite: bool
    symbol: str
    """The letter that stands for the number in a message of the form 0 ≤ β < 1."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """All that a field says of its flag, beside its name, type and default."""

    help: str
    belongs_to: str | None
    """The flag without which this one means nothing."""
    excludes: str | None
    """The flag that says the same in another way: only one of them can be given."""
    resume: Literal["same", "fixed"] | None
    """same: the resumed run must have the same value unless --allow-changed names it; fixed: always."""
    limits: Limits
    by_device: str | None = None
    """The default in words, where it is None and follows from the device (`start/device_defaults.py`)."""


def flag(
    default: Any,
    text: str,
    *,
    belongs_to: str | None = None,
    excludes: str | None = None,
    resume: Literal["same", "fixed"] | None = None,
    by_device: str | None = None,
    **limits: Unpack[Limits],
) -> Any:
    """Return a dataclass field that becomes a command line flag and a YAML key; see `Flag` and `Limits`."""
    metadata = {"flag": Flag(text, belongs_to, excludes, resume, limits, by_device)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def dashed(name: str) -> str:
    """Return a setting's name as its flag spells it, without the leading dashes."""
    return name.replace("_", "-")


def meant(name: str, known: Collection[str]) -> str:
    """Return the end of a message about a name that is none: the nearest right one, if any is near."""
    near = nearest(name, known, alike=0.6)
    return f"did you mean {near}?" if near else "see --help for all"


def limit_problems(name: str, value: Any, limits: Limits) -> Iterator[str]:
    """Yield a line if a number is not what its flag allows."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    above, low = limits.get("above"), limits.get("at_least")
    high = limits.get("below", 2**31 if isinstance(value, int) else math.inf)
    flag_name = f"--{dashed(name)}"
    if low is not None and "below" in limits:  # both ends are told at once
        if not low <= value < high:
            symbol = limits.get("symbol")
            ends = (
                f"in {low} ≤ {symbol} < {high}" if symbol else f"at least {low} and below {number_text(high)}"
            )
            yield f"{flag_name} must be {ends}, got {value}"
        return
    if above is not None and not value > above:
        yield f"{flag_name} must be more than {above}, got {value}"
    elif low is not None and not value >= low:
        yield f"{flag_name} must {'not be negative' if low == 0 else f'be at least {low}'}, got {value}"
    elif isinstance(value, int) and not value < high:
        yield f"{flag_name} must be below {number_text(high)}, got {value}"
    elif limits.get("finite") and not value < math.inf:
        yield f"{flag_name} must be a finite number, got {value}"


def number_text(number: float) -> str:
    """Return a limit as people write it: 2^31, not 2147483648."""
    exponent = math.frexp(number)[1] - 1
    return f"2^{exponent}" if exponent > 16 and number == 2**exponent else str(number)
