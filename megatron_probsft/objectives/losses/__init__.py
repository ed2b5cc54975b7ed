"""The losses that have names. Every file of this folder is imported, in alphabetical order.

A loss is a function with the decorator `forms.register`. It takes log_p `[T]` float32, then the statistics
that it needs, then its numbers, and returns the loss `[T]` float32. In every docstring f is the loss and
s(p) = −f′(p)·p is its weight on (softmax − onehot) in the gradient with respect to the logits, arXiv
2510.00526 eq. 3.
"""

from __future__ import annotations

import importlib
import pkgutil


def import_all() -> None:
    """Import every file of this folder, so that its losses are registered."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{name}")
