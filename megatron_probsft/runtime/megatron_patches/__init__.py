"""Each file here changes something in Megatron-Core or torch; it says what, why, where, for which versions.

`apply` puts them in place. For each there is a canary in tests/unit/runtime/test_megatron_patches.py that
fails once upstream no longer needs it: then the file goes.
"""

from __future__ import annotations

from typing import Any


def replace(owner: Any, name: str, replacement: Any) -> None:
    """Set an attribute of somebody else's module or class, which must have one of that name."""
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone: see runtime/megatron_patches"
    setattr(owner, name, replacement)
