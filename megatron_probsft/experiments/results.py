"""Collects the results of a sweep: a row per run, in a table, results.json and results.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_probsft.experiments.plan import Sweep
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.scoring import Card, EvaluationSummary, SweepResults
from megatron_probsft.runtime.run_files.training import ProbeReport, TrainingSummary
from megatron_probsft.training.log.metrics_file import read_records


def collect(sweep: Sweep, data: Path) -> dict[str, Any]:
    """Read from the sweep's folders everything that a table needs, as it goes into results.json.

    data: the folder of the prepared data.
    """
    card = Card.read_file(data / "card.json", needs=["data_sources"])
    probe = ProbeReport.read_file(sweep.folder / "probe" / "probe.json", needs=["readings"])["readings"][-1]
    base = {"name": "base", "objective": None, "seed": None, **_score(sweep.base)}
    rows: list[dict[str, Any]] = []
    for objective, seed, folder in sweep.runs:
        first, last = _validations(folder / "megatron")
        base |= {"heldout_nll": first["nll"], "heldout_mean_p": first["mean_p"]}  # of the same weights in all
        summary = TrainingSummary.read_file(folder / "megatron" / "summary.json", needs=["wall_seconds"])
        rows.append(
            {
                "name": f"{objective}, seed {seed}" if len(sweep.seeds) > 1 else objective,
                "objective": objective, "seed": seed, "heldout_nll": last["nll"],
                "heldout_mean_p": last["mean_p"],
                "training_minutes": summary["wall_seconds"] / 60, **_score(folder),
            }
        )  # fmt: skip
    content = {
        "dataset": sweep.dataset,
        "model": sweep.model.name,
        "data": card,
        "probe": {name: probe[name] for name in ("mean_p", "median_p", "nll", "place")},
        "rows": [base, *rows],
    }
    if len(sweep.seeds) > 1:
        content["means_over_seeds"] = [_mean(name, rows) for name in sweep.objectives]
    return SweepResults.from_keys(content).to_json()


def write(content: dict[str, Any], folder: Path) -> None:
    """Write results.json and results.md into the folder; each is complete when it appears."""
    for name, text in (
        ("results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n"),
        ("results.md", markdown(content)),
    ):
        write_whole(folder / name, text)


def show(content: dict[str, Any], console: Console) -> None:
    """Print the table of all runs."""
    table = Table(title=_title(content), title_justify="left")
    headings, rows = _cells(content)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(content: dict[str, Any]) -> str:
    """Return the table of all runs as Markdown, under its title."""
    headings, rows = _cells(content)
    lines = [headings, ["---"] * len(headings), *rows]
    return f"{_title(content)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _title(content: dict[str, Any]) -> str:
    sources, probe = ", ".join(content["data"]["data_sources"]), content["probe"]
    return (
        f"{content['dataset']} · {content['model']} · data: {sources} · before training mean p "
        f"{probe['mean_p']:.2f} ({probe['place']})"
    )


def _cells(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    has_similarity = "jaro_winkler" in content["rows"][0]
    headings = ["run", "held-out NLL", "mean p", "accuracy", "95 % interval", "problems"]
    headings += ["Jaro-Winkler"] * has_similarity + ["minutes"]
    rows = []
    for row in content["rows"] + content.get("means_over_seeds", []):
        low, high = row.get("accuracy_ci95", (None, None))
        cells = [
            row["name"], f"{row['heldout_nll']:.3f}", f"{row['heldout_mean_p']:.3f}",
            f"{row['accuracy']:.1%}",
            "" if low is None else f"{low:.1%} to {high:.1%}", f"{row['n']} × {row['samples']}",
        ]  # fmt: skip
        if has_similarity:
            cells.append(f"{row['jaro_winkler']:.3f}")
        rows.append([*cells, f"{row['training_minutes']:.1f}" if "training_minutes" in row else ""])
    return headings, rows


def _mean(objective: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["objective"] == objective]
    names = [name for name, value in own[0].items() if isinstance(value, float)]
    means = {name: statistics.fmean(row[name] for row in own) for name in names}
    counts = {name: own[0][name] for name in ("n", "samples")}
    return {"name": f"{objective}, mean of {len(own)} seeds", "objective": objective, **counts, **means}


def _score(folder: Path) -> dict[str, Any]:
    names = ("accuracy", "accuracy_ci95", "n", "samples")
    summary = EvaluationSummary.read_file(folder / "score" / "summary.json", needs=[*names, "average"])
    found = {name: summary[name] for name in names}
    similarity = summary["average"].get("jaro_winkler")
    return found if similarity is None else found | {"jaro_winkler": similarity}


def _validations(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first validation, which is before training, and the last."""
    found = [record for record in read_records(run) if record["kind"] == "validation"]
    return found[0], found[-1]
