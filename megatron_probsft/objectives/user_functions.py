"""Objectives that are a user's own function, named `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import cast

from megatron_probsft.objectives.check import check_objective, one_line
from megatron_probsft.objectives.objective import Loss, Objective, ObjectiveError, statistics_of


def user_objective(name: str) -> Objective:
    """Import `package.module:function`, also from the current directory, try it, and return the objective.

    The function takes log_p `[T]` float32, then by name the statistics that it needs (`objective.STATISTICS`
    and `vocab_size`), and returns the losses `[T]` float32. One with a threshold says which tokens it keeps
    in an attribute, a function of the same arguments that returns `[T]` bool:
    `function.keeps = lambda log_p: log_p.exp() >= 0.2`.

    Raises:
        ObjectiveError: it cannot be imported, asks for an unknown statistic, or fails `check_objective`.
    """
    function = _import(name)
    try:
        needs = statistics_of(function)
    except ObjectiveError as error:
        raise ObjectiveError(f"objective {name!r}: {error}") from None
    text = (function.__doc__ or "").strip().partition("\n")[0] or "(no docstring)"
    keeps = getattr(function, "keeps", None)
    objective = Objective(name, function, needs, text, "−∂f/∂log p", "user function", keeps)
    check_objective(objective)
    return objective


def _import(name: str) -> Loss:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # stays, for what the function itself may import later
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ObjectiveError(
            f"objective {name!r}: cannot import {module_name!r}: {one_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ObjectiveError(f"objective {name!r}: module {module_name!r} has no function {function_name!r}")
    return cast(Loss, function)
