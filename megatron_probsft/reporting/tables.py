"""Makes the report's tables, of texts, which the page and the Markdown share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.reporting.text import NOTHING, duration, percent, rounded, setting, with_interval


@dataclass(frozen=True)
class Table:
    """Headings, and as many texts in every row; `runs` holds the index of the run that a row is about."""

    headings: Sequence[str]
    rows: list[list[str]]
    texts: int = 1  # so many first columns are texts, the others numbers
    runs: list[int] = field(default_factory=list)
    run_headings: list[int] = field(default_factory=list)  # the run that each heading after the first names


def summary(content: dict[str, Any]) -> Table:
    """Return a row per run with its settings and its results."""
    headings = [
        "run", "objective", "model", "steps", "validation NLL", "mean p", "score (95 % interval)",
        "training", "scoring",
    ]  # fmt: skip
    rows = [
        [
            run["name"], run["objective"] or NOTHING, run["model"] or NOTHING,
            NOTHING if run["steps"] is None else f"{run['steps']:,}",
            _first_to_last(run["validation"]["nll"]), _first_to_last(run["validation"]["mean_p"]),
            with_interval(next(iter(run["scores"].values()))) if run["scores"] else NOTHING,
            duration(run["training_seconds"]), duration(run["evaluation_seconds"]),
        ]
        for run in content["runs"]
    ]  # fmt: skip
    return Table(headings, rows, texts=3, runs=[*range(len(rows))])


def missing(content: dict[str, Any]) -> list[str]:
    """Return a line for each run of which something is not there or not finished."""
    found = []
    for run in content["runs"]:
        notes = [f"no {part}" for part in run["missing"]]
        if run["steps"] is not None and run["status"] != "finished":
            notes.append(f"training {run['status'] or 'not ended'} at step {run['steps']:,}")
        if notes:
            found.append(f"{run['name']}: {', '.join(notes)}")
    return found


def configuration(content: dict[str, Any]) -> Table:
    """Return a row per setting that differs, with a column per run."""
    differences = content["configuration_differences"]
    rows = [[key, *map(setting, values)] for key, values in differences.items()]
    names = [run["name"] for run in content["runs"]]
    return Table(["setting", *names], rows, texts=1 + len(names), run_headings=[*range(len(names))])


def validations(content: dict[str, Any]) -> Table:
    """Return NLL and mean p at every validation of every run, thinned out to twelve each."""
    rows, runs = [], []
    for index, run in enumerate(content["runs"]):
        at = [*zip(*(run["validation"][name] for name in ("iteration", "nll", "mean_p")), strict=True)]
        width = -(-len(at) // 12) or 1
        kept = [*at[:-1:width], *at[-1:]]
        rows += [[run["name"], f"{step:,}", rounded(nll), rounded(mean_p)] for step, nll, mean_p in kept]
        runs += [index] * len(kept)
    return Table(["run", "step", "validation NLL", "mean p"], rows, runs=runs)


def shares(content: dict[str, Any]) -> Table:
    """Return the shares of tokens and of gradient mass in three ranges of p, before and after training."""
    headings = ["run", "", "tokens p < 0.1", "0.1 to 0.55", "≥ 0.55"]
    headings += ["gradient p < 0.1", "0.1 to 0.55", "≥ 0.55"]
    rows, runs = [], []
    for index, run in enumerate(content["runs"]):
        for when, one in run["histograms"].items():
            mass = run["gradient_mass"].get(when)
            in_ranges = _ranges(one["shares"]) + (_ranges(mass) if mass else [None] * 3)
            rows.append([run["name"], f"step {one['step']:,}", *map(percent, in_ranges)])
            runs.append(index)
    return Table(headings, rows, texts=2, runs=runs)


def scores(content: dict[str, Any]) -> Table:
    """Return a row per benchmark and run; columns that no evaluation fills are left out."""
    rows: list[list[str]] = []
    runs = []
    names = dict.fromkeys(name for run in content["runs"] for name in run["scores"])
    for benchmark in names:
        for index, run in enumerate(content["runs"]):
            if benchmark in run["scores"]:
                rows.append([benchmark, run["name"], *_score(run["scores"][benchmark])])
                runs.append(index)
    headings = [
        "benchmark", "run", "problems", "samples", "accuracy (95 % interval)", "first sample", "pass@k",
        "majority", "Jaro-Winkler", "unparsable", "timed out",
    ]  # fmt: skip
    filled = [i for i in range(len(headings)) if i < 5 or any(row[i] != NOTHING for row in rows)]
    return Table([headings[i] for i in filled], [[row[i] for i in filled] for row in rows], 2, runs)


def verdicts(content: dict[str, Any]) -> Table:
    """Return, for each pair of runs, how many problems the row's run got right and the column's got wrong."""
    counts = {(one["right"], one["wrong"]): one for one in content["changed_verdicts"]["pairs"]}
    indices = [i for i, run in enumerate(content["runs"]) if any(run["name"] in pair for pair in counts)]
    names = [content["runs"][index]["name"] for index in indices]
    rows = []
    for right in names:
        found = [counts.get((right, wrong)) for wrong in names]
        rows.append([right, *(f"{one['count']:,} of {one['of']:,}" if one else NOTHING for one in found)])
    return Table(["right ↓ wrong →", *names], rows, runs=indices, run_headings=indices)


def _first_to_last(values: list[float | None]) -> str:
    ends = values if len(values) < 2 else [values[0], values[-1]]
    return " → ".join(map(rounded, ends)) or NOTHING


def _ranges(mass: list[float]) -> list[float]:
    """Return the sums below 0.1, up to 0.55, and above."""
    low, high = round(0.1 * len(mass)), round(0.55 * len(mass))
    return [sum(mass[:low]), sum(mass[low:high]), sum(mass[high:])]


def _score(numbers: dict[str, Any]) -> list[str]:
    several = {int(k): rate for k, rate in (numbers.get("pass_at_k") or {}).items() if int(k) > 1}
    most = max(several, default=None)
    counts = [numbers.get(name) for name in ("n", "samples", "unparsable", "timeouts")]
    n, samples, unparsable, timeouts = (NOTHING if count is None else f"{count:,g}" for count in counts)
    return [
        n, samples, with_interval(numbers), percent(numbers.get("first_sample_accuracy")),
        NOTHING if most is None else f"@{most}: {percent(several[most])}",
        percent(numbers.get("majority_at_n")), rounded(numbers.get("jaro_winkler")), unparsable, timeouts,
    ]  # fmt: skip


def mass_notes(content: dict[str, Any]) -> list[str]:
    """Return the lines that say why a run's gradient mass is not there, or what it leaves out."""
    return [
        f"{run['name']}: {run['gradient_mass_note']}" for run in content["runs"] if run["gradient_mass_note"]
    ]


def score_name(content: dict[str, Any]) -> str:
    """Return the name of the summary's score; it is empty where no run has one."""
    firsts = dict.fromkeys(next(iter(run["scores"])) for run in content["runs"] if run["scores"])
    return (
        "accuracy, " + ", ".join(f"{name} over benchmarks" if name == "average" else name for name in firsts)
        if firsts
        else ""
    )
