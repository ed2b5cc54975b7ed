"""The results of an evaluation: scores per benchmark and on average, and the file of generations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_probsft.domains.benchmarks.problems import Problem, sample_seed
from megatron_probsft.evaluation.engines.vllm_runner import Generation
from megatron_probsft.evaluation.scoring.metrics import average_metrics, benchmark_metrics
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.grading.grade import Grade
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.scoring import GenerationLine


def scores(
    task: Task, samples: int, seed: int, problems: list[Problem], texts: list[str],
    grades: list[Grade],
) -> dict[str, Any]:  # fmt: skip
    """Per benchmark and on average; `problems` as long as `texts`, one for each sample."""
    places: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        places.setdefault(problem.benchmark, []).append(place)
    benchmarks, means = {}, []
    for name, of_benchmark in places.items():
        mine = [grades[place] for place in of_benchmark]
        groups = [mine[i : i + samples] for i in range(0, len(mine), samples)]
        correct = [[grade.correct for grade in group] for group in groups]
        keys = [[task.key(grade) for grade in group] for group in groups]
        own = [problems[place] for place in of_benchmark], [texts[place] for place in of_benchmark]
        benchmarks[name] = {
            **benchmark_metrics(correct, keys, seed),
            "timeouts": sum(grade.verdict == "timeout" for grade in mine),
            "unparsable": sum(grade.verdict == "unparsable" for grade in mine),
            **task.more(*own, mine),
        }
        means.append([sum(one) / len(one) for one in correct])
    average = average_metrics(list(benchmarks.values()), means, seed)
    return {
        "accuracy": average["accuracy"], "accuracy_ci95": average["accuracy_ci95"], "benchmarks": benchmarks,
        "average": average,
    }  # fmt: skip


def write_generations(
    output: Path, samples: int, seed: int, problems: list[Problem], generations: list[Generation],
    texts: list[str], grades: list[Grade],
) -> None:  # fmt: skip
    lines = []
    for place, (problem, one, text, grade) in enumerate(
        zip(problems, generations, texts, grades, strict=True)
    ):
        sample = place % samples
        line = {
            "benchmark": problem.benchmark, "id": problem.id, "index": problem.index, "sample": sample,
            "seed": sample_seed(seed, problem, sample), "prompt": problem.prompt,
            "answer": problem.answer, "generation": text, "finish_reason": one.finish_reason,
            "tokens": len(one.tokens), "prediction": grade.prediction, "verdict": grade.verdict,
            "correct": int(grade.correct),
        }  # fmt: skip
        if grade.similarity is not None:
            line["similarity"] = grade.similarity
        written = GenerationLine.from_keys(line).to_json()
        lines.append(json.dumps(written, ensure_ascii=False) + "\n")
    write_whole(output / "generations.jsonl", "".join(lines))
