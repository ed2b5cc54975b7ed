"""The keys of an evaluation's summary.json and generations.jsonl, of card.json and of results.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_probsft.runtime.run_files.schema import FileContent, Number, may_be_missing


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores(FileContent):
    """The numbers of one benchmark in an evaluation's summary; a domain may add numbers of its own."""

    n: int
    samples: int
    accuracy: float
    accuracy_ci95: list[float] | None
    first_sample_accuracy: Number
    pass_at_k: dict[str, float]
    majority_at_n: Number
    timeouts: Number
    unparsable: Number
    jaro_winkler: Number = may_be_missing()


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary(FileContent):
    """summary.json of an evaluation: its scores, and everything that decided them."""

    model: str
    task: str
    task_version: int | None = may_be_missing()
    """The domain's version of prompts and grading; None for a file of one's own."""
    n: int
    samples: int
    accuracy: float
    """The mean over benchmarks, as its interval."""
    accuracy_ci95: list[float] | None
    benchmarks: dict[str, Any]
    """`BenchmarkScores` by name."""
    average: dict[str, Any]
    cut_at_max_new_tokens: float
    """The share of generations that were cut."""
    grader: str
    template: str
    template_date: str | None
    temperature: float
    max_new_tokens: int
    seed: int
    start: int | None
    end: int | None
    limit: int | None
    data: list[str]
    server: str | None
    served_model: str | None
    prompts_with_less_room: int
    dtype: str = may_be_missing()
    """What generated; missing where nothing had to be generated any more."""
    device: str = may_be_missing()
    vllm: str = may_be_missing()
    tensor_parallel_size: int
    data_parallel_size: int | None = may_be_missing()
    """Engines side by side; None of a server, missing in files of before it could be more than one."""
    generated_tokens: int
    resumed_generations: int
    tokens_per_second: float
    generation_seconds: float
    startup_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GenerationLine(FileContent):
    """A line of generations.jsonl: one sample of one problem, and its grade."""

    benchmark: str
    id: str | int
    index: int
    """The problem's place in its benchmark."""
    sample: int
    seed: int
    prompt: Any
    answer: Any
    generation: str
    finish_reason: str
    tokens: int
    prediction: Any
    verdict: str
    correct: Any
    similarity: Number = may_be_missing()


@dataclass(frozen=True, kw_only=True)
class Card(FileContent):
    """card.json of a prepared folder: what its files hold, and what was left out."""

    domain: str
    data_sources: list[str]
    rows: dict[str, int]
    """Rows by file."""
    read: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    test_questions_in_training: int
    notes: list[str]
    about: dict[str, Any]
    tokens: dict[str, Any] | None
    """Lengths in tokens, where a tokenizer was given."""
    settings: dict[str, Any]
    """What decided the content."""


@dataclass(frozen=True, kw_only=True)
class SweepResults(FileContent):
    """results.json of a sweep: a row for the base model and for each run."""

    dataset: str
    model: str
    data: dict[str, Any]
    """The data's `Card`."""
    probe: dict[str, Any]
    rows: list[dict[str, Any]]
    means_over_seeds: list[dict[str, Any]] = may_be_missing()
