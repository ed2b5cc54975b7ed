"""The end of a run in short: `summary.json`, a table, a picture. All from the run's records."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from megatron_probsft.training.log.console import eta
from megatron_probsft.training.log.timing import PARTS

_MEANS = ("loss", "nll", "mean_p", "entropy")


def summarize(records: list[dict[str, Any]], rest: dict[str, float]) -> dict[str, Any]:
    """Return what a run's records come to, those of the processes before a resume included.

    rest: seconds by part after the last step's record. What an earlier process did after its last step (a
    checkpoint as a rule) is not in the records, nor in the sums.

    Returns:
        totals (steps, samples, tokens, seconds by part), rates over the time without validation and
        checkpoints, the first and last means, validation's best step by its loss.
    """
    steps = [record for record in records if record["kind"] == "train"]
    validations = [record for record in records if record["kind"] == "validation"]
    seconds = {part: sum(step["seconds"][part] for step in steps) + rest[part] for part in PARTS}
    training = sum(seconds.values()) - seconds["validation"] - seconds["checkpoint"]
    totals = {name: sum(step[name] for step in steps) for name in ("samples", "tokens", "supervised_tokens")}
    content: dict[str, Any] = {
        "steps": len(steps), **totals, "wall_seconds": sum(seconds.values()), "seconds": seconds,
        "tokens_per_second": totals["tokens"] / training,
        "supervised_tokens_per_second": totals["supervised_tokens"] / training,
    }  # fmt: skip
    if steps:
        computed = sum(step["tokens"] / step["packing_efficiency"] for step in steps)
        content["packing_efficiency"] = totals["tokens"] / computed
        for name in ("model_tflops_per_device", "mfu"):
            if name in steps[-1]:
                content[name] = sum(step[name] * _own(step["seconds"]) for step in steps) / training
        content["train"] = {"first": _point(steps[0]), "last": _point(steps[-1])}
    if validations:
        best = min(validations, key=lambda record: float("inf") if record["loss"] is None else record["loss"])
        content["validation"] = {
            "first": _point(validations[0]), "last": _point(validations[-1]), "best": _point(best),
        }  # fmt: skip
    content["skipped_steps"] = steps[-1]["skipped_steps"] if steps else 0
    content["spikes"] = sum(bool(step["spike"]) for step in steps)
    return content


def table(content: dict[str, Any]) -> Table:
    """Return the summary as rows of a name and a text."""
    rows = {
        "steps": f"{content['steps']:,} ({content['skipped_steps']} skipped, {content['spikes']} spikes)",
        "samples, tokens": f"{content['samples']:,}, {content['tokens']:,} "
        f"({content['supervised_tokens']:,} supervised)",
        "time": f"{eta(content['wall_seconds'])} ("
        + ", ".join(
            f"{part.replace('_', '-')} {seconds / content['wall_seconds']:.0%}"
            for part, seconds in content["seconds"].items()
        )
        + ")",
        "tokens/s": f"{content['tokens_per_second']:,.0f} "
        f"({content['supervised_tokens_per_second']:,.0f} supervised)",
    }
    if "packing_efficiency" in content:
        rows["packing efficiency"] = f"{content['packing_efficiency']:.1%}"
    if "model_tflops_per_device" in content:
        mfu = f" (MFU {content['mfu']:.1%})" if "mfu" in content else ""
        rows["model TFLOP/s per device"] = f"{content['model_tflops_per_device']:.4g}{mfu}"
    for kind in ("train", "validation"):
        for which, point in content.get(kind, {}).items():
            means = ", ".join(
                f"{name.replace('_', ' ')} {point[name]:.4f}"
                for name in _MEANS
                if point.get(name) is not None
            )
            rows[f"{kind}, {which}"] = f"{means} at step {point['iteration']}"
    rows["peak memory"] = f"{content['peak_memory_gib']:.2f} GiB on the fullest rank"
    rows["checkpoint"] = content["checkpoint"] or "none"
    found = Table(title=f"run {content['status']}", show_header=False, title_justify="left")
    for name, text in rows.items():
        found.add_row(name, text)
    return found


def _own(seconds: dict[str, float]) -> float:
    """Return a step's time without what came before it."""
    return sum(seconds.values()) - seconds["validation"] - seconds["checkpoint"]


def _point(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("iteration", *_MEANS) if name in record}
