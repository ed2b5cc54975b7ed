"""Writes numbers and texts as people read them, alike in the page and in Markdown."""

from __future__ import annotations

from typing import Any

NOTHING = "–"
_MOST_CHARACTERS = 700


def rounded(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits after the point; a sign for nothing where it is None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as a percentage; a sign for nothing where it is None."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def with_interval(numbers: dict[str, Any]) -> str:
    """Return `41.0 % (34.4 to 47.9)`; the interval is left out where there is none."""
    interval = numbers.get("accuracy_ci95")
    shown = percent(numbers["accuracy"])
    return f"{shown} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else shown


def duration(seconds: float | None) -> str:
    """Return the time as `41 s`, `4 min 52 s` or `3 h 07 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any) -> str:
    """Return a value of train_config.yaml as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(setting, value)) if isinstance(value, list) else str(value)


def excerpt(text: str) -> str:
    """Return the beginning and the end of a long text; a generation's answer stands at its end."""
    left_out = len(text) - _MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]}\n[… {left_out:,} characters left out …]\n{text[-half:]}"


def title_of(content: dict[str, Any]) -> tuple[str, str]:
    """Return a heading that says what is compared, and a line below it."""
    runs = content["runs"]
    objectives = dict.fromkeys(run["objective"] for run in runs if run["objective"])
    models = dict.fromkeys(run["model"] for run in runs if run["model"])
    what = runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
    parts = [", ".join(models), f"objectives: {', '.join(objectives)}" if objectives else ""]
    return f"Report: {what}", " · ".join(filter(None, parts))


def problem_name(example: dict[str, Any]) -> str:
    """Return the problem's id, with the benchmark's name where that is not in it."""
    benchmark, problem = example["benchmark"], example["id"]
    return problem if benchmark in problem else f"{benchmark} {problem}"
