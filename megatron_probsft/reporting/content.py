"""Makes the report as data: everything that its page, its Markdown and its JSON say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_probsft.objectives.objective import ObjectiveError
from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.reporting.comparison import (
    Change,
    changed_verdicts,
    config_differences,
    examples,
    samples,
    shared_problems,
)
from megatron_probsft.reporting.gradient_mass import gradient_mass
from megatron_probsft.reporting.load import Run

CURVES = ("nll", "mean_p", "loss", "grad_norm")
_VALIDATED = ("nll", "mean_p", "loss")
_MOST_POINTS = 400  # of a curve
_MOST_EXAMPLES = 12
_NUMBERS = (
    "n", "samples", "accuracy", "accuracy_ci95", "first_sample_accuracy", "pass_at_k", "majority_at_n",
    "jaro_winkler", "unparsable", "timeouts",
)  # fmt: skip


def build(runs: Sequence[Run]) -> dict[str, Any]:
    """Return all of the report, ready for JSON: a list of runs, and what compares them.

    Histograms and gradient mass are shares by equal bins of p; curves have up to 400 points, each the mean
    over `steps_per_point` steps.
    """
    return {
        "runs": [_run(run) for run in runs],
        "configuration_differences": config_differences(runs),
        "changed_verdicts": _verdicts(runs),
    }


def _run(run: Run) -> dict[str, Any]:
    steps, validations = run.of_kind("train"), run.of_kind("validation")
    histograms = _before_and_after(validations)
    return {
        "name": run.name, "folder": str(run.folder), "objective": run.config.get("objective"),
        "model": run.model, "steps": steps[-1]["iteration"] if steps else None,
        "status": run.summary.get("status") if run.records else None,
        "training_seconds": _training_seconds(run, steps),
        "evaluation_seconds": run.evaluation.summary.get("seconds") if run.evaluation else None,
        "missing": run.missing,
        "curves": _curves(steps),
        "validation": {
            name: [record[name] for record in validations] for name in ("iteration", *_VALIDATED)
        },
        "histograms": histograms,
        **_mass(run, histograms),
        "scores": {
            name: {key: numbers[key] for key in _NUMBERS if key in numbers}
            for name, numbers in (run.evaluation.benchmarks if run.evaluation else {}).items()
        },
    }  # fmt: skip


def _training_seconds(run: Run, steps: list[dict[str, Any]]) -> float | None:
    if not steps:
        return None
    of_steps = sum(sum(step["seconds"].values()) for step in steps)
    return run.summary.get("wall_seconds", of_steps)


def _curves(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over so many steps that the points stay below the limit; null stands for what is not finite."""
    width = -(-len(steps) // _MOST_POINTS) or 1
    found: dict[str, Any] = {"steps_per_point": width}
    for name in ("iteration", *CURVES):
        values = [float("nan") if step[name] is None else float(step[name]) for step in steps]
        means = (float(np.mean(values[i : i + width])) for i in range(0, len(values), width))
        found[name] = [mean if np.isfinite(mean) else None for mean in means]
    return found


def _before_and_after(validations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the first and the last validation's histogram, with the step."""
    ends = {"before": validations[0], "after": validations[-1]} if validations else {}
    if len(validations) == 1:
        del ends["after"]
    return {
        name: {"step": record["iteration"], "shares": record["p_histogram"]} for name, record in ends.items()
    }


def _mass(run: Run, histograms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return `gradient_mass` before and after training, or a note that says why it cannot be known."""
    name = run.config.get("objective")
    if not histograms or name is None:
        return {"gradient_mass": {}, "gradient_mass_note": None}
    try:
        objective = get_objective(name)
        mass = {when: gradient_mass(objective, one["shares"]) for when, one in histograms.items()}
    except ObjectiveError as error:
        return {"gradient_mass": {}, "gradient_mass_note": str(error)}
    note = "the rows' weights (weight_key) are not in it" if run.config.get("weight_key") else None
    return {"gradient_mass": mass, "gradient_mass_note": note}


def _verdicts(runs: Sequence[Run]) -> dict[str, Any]:
    changes = changed_verdicts(runs)
    pairs = [
        {
            "right": runs[right].name, "wrong": runs[wrong].name, "count": len(found),
            "of": shared_problems(runs[right], runs[wrong]),
        }
        for (right, wrong), found in changes.items()
        if shared_problems(runs[right], runs[wrong])
    ]  # fmt: skip
    return {
        "pairs": pairs,
        "examples": [_example(runs, change) for change in examples(changes, _MOST_EXAMPLES)],
    }


def _example(runs: Sequence[Run], change: Change) -> dict[str, Any]:
    benchmark, problem, question = change.key
    found = {"benchmark": benchmark, "id": problem, "question": question}
    for side, index in (("right", change.right), ("wrong", change.wrong)):
        line = samples(runs[index])[change.key]
        found |= {
            "answer": str(line["answer"]),
            side: {
                "run": runs[index].name,
                "verdict": line.get("verdict", side),
                "prediction": line.get("prediction"),
                "generation": line["generation"],
            },
        }
    return found
