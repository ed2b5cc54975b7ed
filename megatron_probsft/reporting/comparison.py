"""Finds what differs between runs: settings, and verdicts on the same problem."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.reporting.load import Key, Run

_WRITTEN_TO = ("save", "save_hf")  # differ always and change nothing


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the keys of train_config.yaml whose values differ, each with one value per run.

    Where a run has no configuration, or not that key, the value is None. The folders that a run is written to
    are left out, and `load` where it names the run itself.
    """
    configs = [_without_folders(run.config) for run in runs]
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config)
    differing = [key for key in keys if any(one.get(key) != known[0].get(key) for one in known)]
    return {key: [config.get(key) for config in configs] for key in differing}


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    aside = {*_WRITTEN_TO, *(("load",) if config.get("load") == config.get("save") else ())}
    return {key: value for key, value in config.items() if key not in aside}


@dataclass(frozen=True)
class Change:
    """A problem that is right in one run's sample 0 and wrong in another's; runs are named by index."""

    key: Key
    right: int
    wrong: int


def changed_verdicts(runs: Sequence[Run]) -> dict[tuple[int, int], list[Change]]:
    """Return the changes by (index of the run that is right, index of the one that is wrong)."""
    found = {}
    for right, wrong in itertools.permutations(range(len(runs)), 2):
        ours, others = samples(runs[right]), samples(runs[wrong])
        found[right, wrong] = [
            Change(key, right, wrong)
            for key, line in ours.items()
            if key in others and line["correct"] and not others[key]["correct"]
        ]
    return found


def shared_problems(one: Run, other: Run) -> int:
    """Return the number of problems that both runs were asked."""
    return len(samples(one).keys() & samples(other).keys())


def examples(changes: dict[tuple[int, int], list[Change]], most: int) -> list[Change]:
    """Choose up to `most` changes, in turn from every pair of runs, and no problem twice."""
    chosen: dict[Key, Change] = {}
    for turn in itertools.zip_longest(*changes.values()):
        for change in turn:
            if change is not None and len(chosen) < most:
                chosen.setdefault(change.key, change)
    return sorted(chosen.values(), key=lambda change: (change.right, change.wrong))


def samples(run: Run) -> dict[Key, dict[str, Any]]:
    """Return sample 0 of every problem that the run was asked."""
    return run.evaluation.first_samples if run.evaluation else {}
