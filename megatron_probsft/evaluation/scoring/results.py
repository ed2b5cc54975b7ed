"""The results of an evaluation: scores per benchmark and on average, and the file of generations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from megatron_probsft.domains.task import Task
from megatron_probsft.evaluation.request import Sample
from megatron_probsft.evaluation.scoring.metrics import average_metrics, benchmark_metrics
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.scoring import GenerationLine


def score_samples(task: Task, samples: list[Sample], seed: int) -> dict[str, Any]:
    """The numbers of each benchmark and of their average; `seed` is that of the intervals' resampling."""
    by_benchmark: dict[str, list[Sample]] = {}
    for one in samples:
        by_benchmark.setdefault(one.request.problem.benchmark, []).append(one)
    benchmarks = {name: _scores(task, mine, seed) for name, mine in by_benchmark.items()}
    means = [
        [sum(one.grade.correct for one in group) / len(group) for group in _by_problem(mine)]
        for mine in by_benchmark.values()
    ]
    average = average_metrics(list(benchmarks.values()), means, seed)
    return {
        "accuracy": average["accuracy"], "accuracy_ci95": average["accuracy_ci95"], "benchmarks": benchmarks,
        "average": average,
    }  # fmt: skip


def _scores(task: Task, samples: list[Sample], seed: int) -> dict[str, Any]:
    """The numbers of one benchmark."""
    grades, groups = [one.grade for one in samples], _by_problem(samples)
    correct = [[one.grade.correct for one in group] for group in groups]
    keys = [[task.majority_key(one.grade) for one in group] for group in groups]
    return {
        **benchmark_metrics(correct, keys, seed),
        "timeouts": sum(grade.verdict == "timeout" for grade in grades),
        "unparsable": sum(grade.verdict == "unparsable" for grade in grades),
        **task.more_metrics([one.request.problem for one in samples], [one.text for one in samples], grades),
    }


def _by_problem(samples: list[Sample]) -> list[list[Sample]]:
    """The samples of one benchmark, which stand problem by problem, in a list for each."""
    of_each = 1 + max(one.request.sample for one in samples)
    return [list(group) for group in itertools.batched(samples, of_each)]


def write_generations(output: Path, samples: list[Sample]) -> None:
    """Write generations.jsonl, a line for each sample."""
    write_whole(
        output / "generations.jsonl",
        "".join(json.dumps(_line(one), ensure_ascii=False) + "\n" for one in samples),
    )


def _line(one: Sample) -> dict[str, Any]:
    request, problem, grade = one.request, one.request.problem, one.grade
    line = {
        "benchmark": problem.benchmark, "id": problem.id, "index": problem.index, "sample": request.sample,
        "seed": request.seed, "prompt": problem.prompt, "answer": problem.answer, "generation": one.text,
        "finish_reason": one.generation.finish_reason, "tokens": len(one.generation.tokens),
        "prediction": grade.prediction, "verdict": grade.verdict, "correct": int(grade.correct),
    }  # fmt: skip
    similarity = {} if grade.similarity is None else {"similarity": grade.similarity}
    return GenerationLine.from_keys(line | similarity).to_json()
