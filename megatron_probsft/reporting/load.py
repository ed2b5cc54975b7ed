"""Reads and checks runs as they lie on disk: the trainer's folder and the evaluation's folder of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.reporting.names import shortest_names
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object, read_yaml_mapping

Key = tuple[str, str, str]  # a problem: benchmark, id, question

_NUMBER = (int, float)
_MAYBE = (int, float, type(None))  # null: it was not finite
_TEXT = (str, type(None))
# What the report takes from the files of a run, with its types.
_OF_CONFIG = {"objective": _TEXT, "hf_model": _TEXT, "load": _TEXT}
_OF_STEP = {"loss": _MAYBE, "nll": _MAYBE, "mean_p": _MAYBE, "grad_norm": _MAYBE, "seconds": dict}
_OF_VALIDATION = {"loss": _MAYBE, "nll": _MAYBE, "mean_p": _MAYBE, "p_histogram": list}
_OF_SCORE = {"accuracy": _NUMBER, "accuracy_ci95": (list, type(None)), "n": int, "samples": int}
_ALSO_OF_SCORE = {"pass_at_k": dict, "jaro_winkler": _MAYBE, "unparsable": _MAYBE, "timeouts": _MAYBE}
_OF_GENERATION = {
    "sample": int, "index": int, "prompt": object, "answer": object, "generation": str, "correct": object
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: the --output of `probsft evaluate`."""

    summary: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]]
    """Its numbers by benchmark; where there are several, their `average` comes first."""
    first_samples: dict[Key, dict[str, Any]]
    """Sample 0 of every problem, as in generations.jsonl."""


@dataclass(frozen=True)
class Run:
    """One run, as far as it is there; what is missing is empty or None, and named in `missing`."""

    name: str
    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: Evaluation | None
    missing: list[str]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of training (`train`) or of validation (`validation`), in order of steps."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def model(self) -> str | None:
        """The name of the model that training started from, or that was scored without training."""
        start = self.config.get("hf_model") or self.config.get("load")
        if start is None and not self.records and self.evaluation:
            start = self.evaluation.summary.get("model")
        return None if start is None else str(start).rstrip("/").rpartition("/")[2]


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every run: a trainer's run folder, or a folder that holds megatron/ and/or score/.

    Raises:
        UserError: a folder does not exist, holds no run, is named twice, or a file in it cannot be read.
    """
    places = [_places(folder) for folder in folders]
    for i, (folder, place) in enumerate(zip(folders, places, strict=True)):
        for other, earlier in zip(folders[:i], places, strict=False):
            if set(filter(None, place)) & set(filter(None, earlier)):
                raise UserError(f"{folder} and {other} are the same run: name each once")
    names = shortest_names([folder.resolve() for folder in folders])
    return [_load(*one) for one in zip(names, folders, places, strict=True)]


def _places(folder: Path) -> tuple[Path | None, Path | None]:
    """Find the folders of a run's training and of its evaluation."""
    if not folder.is_dir():
        raise UserError(f"run {folder} {'is a file' if folder.exists() else 'does not exist'}: give a folder")
    trained = [place for place in (folder, folder / "megatron") if (place / "metrics.jsonl").is_file()]
    score = folder / "score"
    if not trained and not score.is_dir():
        raise UserError(
            f"{folder} holds no run: expected the trainer's metrics.jsonl, or a folder megatron/ with it, or"
            " an evaluation in score/"
        )
    return (trained[0].resolve() if trained else None), (score.resolve() if score.is_dir() else None)


def _load(name: str, folder: Path, places: tuple[Path | None, Path | None]) -> Run:
    trained, scored = places
    missing = [] if trained else ["training"]
    config, records, summary = {}, [], {}
    if trained:
        if (trained / "train_config.yaml").is_file():
            config = read_yaml_mapping(trained / "train_config.yaml")
            _check(trained / "train_config.yaml", config, _OF_CONFIG, optional=True)
        records = list(_records(trained / "metrics.jsonl"))
        summary = _json(trained / "summary.json")
        _check(trained / "summary.json", summary, {"wall_seconds": _NUMBER, "status": str}, optional=True)
        missing += [] if config else ["configuration"]
        missing += [] if any(record["kind"] == "validation" for record in records) else ["validation"]
    evaluation = _evaluation(scored) if scored else None
    if evaluation is None:
        missing.append("evaluation (score/ is not complete)" if scored else "evaluation")
    return Run(name, folder, config, records, summary, evaluation, missing)


def _evaluation(folder: Path) -> Evaluation | None:
    """Read an evaluation; None where it is not complete."""
    file = folder / "summary.json"
    summary = _json(file)
    if not summary:
        return None
    _check(file, summary, {"benchmarks": dict, "average": dict, "seconds": _NUMBER}, optional=True)
    if not summary.get("benchmarks"):
        _check(file, summary, {"task": str})
    benchmarks = summary.get("benchmarks") or {Path(summary["task"]).stem: summary}
    for name, numbers in benchmarks.items():
        _check(file, numbers, _OF_SCORE, f" benchmark {name}")
        _check(file, numbers, _ALSO_OF_SCORE, f" benchmark {name}", optional=True)
    if len(benchmarks) > 1:
        _check(file, summary, _OF_SCORE)
        of_all = {name: summary[name] for name in _OF_SCORE}
        benchmarks = {"average": of_all | summary.get("average", {}), **benchmarks}
    first = {}
    if (folder / "generations.jsonl").is_file():
        for number, line in _json_lines(folder / "generations.jsonl"):
            _check(folder / "generations.jsonl", line, _OF_GENERATION, f" line {number}")
            if line["sample"] == 0:
                key = str(line.get("benchmark", "")), str(line.get("id", line["index"])), line["prompt"]
                first[key] = line
    return Evaluation(summary, benchmarks, first)


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object; it is empty where there is no file."""
    return read_json_object(file) if file.is_file() else {}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    for number, record in _json_lines(file):
        where = f" line {number}"
        _check(file, record, {"kind": str, "iteration": int}, where)
        if record["kind"] == "train":
            _check(file, record, _OF_STEP, where)
        if record["kind"] == "validation":
            _check(file, record, _OF_VALIDATION, where)
        yield record


def _check(
    file: Path, content: Any, kinds: dict[str, Any], where: str = "", *, optional: bool = False
) -> None:
    """Raises UserError: a key is missing, unless optional, or its value is of another kind."""
    if not isinstance(content, dict):
        raise UserError(f"{file}{where} must be a JSON object, got {type(content).__name__}")
    for key, kind in kinds.items():
        if key not in content and optional:
            continue
        if key not in content:
            raise UserError(f"{file}{where} is not what a run writes: it has no {key!r}")
        if not isinstance(content[key], kind):
            raise UserError(f"{file}{where} is not what a run writes: {key!r} is {str(content[key])[:40]!r}")


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield every line with its number; a last one without its end is still being written and left out."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file} line {number} is not valid JSON: {error}") from None
            yield number, content
