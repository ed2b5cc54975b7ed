"""Reads and checks runs as they lie on disk: the trainer's folder and the evaluation's folder of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.reporting.names import shortest_names
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.runtime.run_files.schema import FileContent, check_kinds
from megatron_probsft.runtime.run_files.scoring import BenchmarkScores, EvaluationSummary, GenerationLine
from megatron_probsft.runtime.run_files.training import RECORDS, Record, TrainingSummary

Key = tuple[str, str, str]  # a problem: benchmark, id, question

_TEXT = (str, type(None))
_OF_CONFIG = {"objective": _TEXT, "hf_model": _TEXT, "load": _TEXT}
# The keys that the report cannot do without; others may be missing in files of earlier versions.
_OF_RECORD = {
    "train": ("loss", "nll", "mean_p", "grad_norm", "seconds"),
    "validation": ("loss", "nll", "mean_p", "p_histogram"),
}
_OF_SCORE = ("accuracy", "accuracy_ci95", "n", "samples")
_OF_GENERATION = ("sample", "index", "prompt", "answer", "generation", "correct")


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
            check_kinds(config, str(trained / "train_config.yaml"), _OF_CONFIG, optional=True)
        records = list(_records(trained / "metrics.jsonl"))
        summary = _json(trained / "summary.json", TrainingSummary)
        missing += [] if config else ["configuration"]
        missing += [] if any(record["kind"] == "validation" for record in records) else ["validation"]
    evaluation = _evaluation(scored) if scored else None
    if evaluation is None:
        missing.append("evaluation (score/ is not complete)" if scored else "evaluation")
    return Run(name, folder, config, records, summary, evaluation, missing)


def _evaluation(folder: Path) -> Evaluation | None:
    """Read an evaluation; None where it is not complete."""
    file = folder / "summary.json"
    summary = _json(file, EvaluationSummary)
    if not summary:
        return None
    if not summary.get("benchmarks"):
        EvaluationSummary.check(summary, str(file), needs=["task"])
    benchmarks = summary.get("benchmarks") or {Path(summary["task"]).stem: summary}
    for name, numbers in benchmarks.items():
        BenchmarkScores.check(numbers, f"{file} benchmark {name}", _OF_SCORE)
    if len(benchmarks) > 1:
        EvaluationSummary.check(summary, str(file), _OF_SCORE)
        of_all = {name: summary[name] for name in _OF_SCORE}
        benchmarks = {"average": of_all | summary.get("average", {}), **benchmarks}
    first = {}
    if (folder / "generations.jsonl").is_file():
        for number, line in _json_lines(folder / "generations.jsonl"):
            GenerationLine.check(line, f"{folder / 'generations.jsonl'} line {number}", _OF_GENERATION)
            if line["sample"] == 0:
                key = str(line.get("benchmark", "")), str(line.get("id", line["index"])), line["prompt"]
                first[key] = line
    return Evaluation(summary, benchmarks, first)


def _json(file: Path, content: type[FileContent]) -> dict[str, Any]:
    """Read a JSON object; it is empty where there is no file."""
    return content.read_file(file) if file.is_file() else {}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    for number, record in _json_lines(file):
        where = f"{file} line {number}"
        kind = Record.check(record, where, needs=["kind", "iteration"])["kind"]
        if kind in RECORDS:
            RECORDS[kind].check(record, where, _OF_RECORD[kind])
        yield record


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
