"""An evaluation from its settings to OUTPUT/generations.jsonl and OUTPUT/summary.json."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_probsft.domains.benchmarks.problems import Problem, check_ids, slice_of
from megatron_probsft.domains.task import Task
from megatron_probsft.evaluation.engines.devices import engine_devices
from megatron_probsft.evaluation.engines.engine import Decoding, Engine, Seconds
from megatron_probsft.evaluation.engines.vllm_runner import VllmRunner, kv_bytes_per_token
from megatron_probsft.evaluation.request import Request, Sample, Sampling
from megatron_probsft.evaluation.scoring.results import score_samples, write_generations
from megatron_probsft.evaluation.settings import Settings, check_settings
from megatron_probsft.evaluation.tasks import get_task
from megatron_probsft.evaluation.unfinished import Unfinished
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import write_whole
from megatron_probsft.runtime.run_files.scoring import EvaluationSummary

if TYPE_CHECKING:  # it imports transformers, which takes seconds, and most mistakes are found without it
    from megatron_probsft.evaluation.opened_model import OpenedModel


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation of which all is known but the generations."""

    settings: Settings
    task: Task
    sampling: Sampling
    model: OpenedModel
    requests: list[Request]
    devices: Sequence[str | None]
    """The GPUs of each engine; None: those of the environment, or the CPU. A server has its own."""

    @property
    def first_samples(self) -> list[Request]:
        """One request of each problem."""
        return [one for one in self.requests if one.sample == 0]

    @property
    def shortened(self) -> int:
        """The number of problems that leave room for fewer tokens than are asked for."""
        return sum(one.max_new_tokens < self.sampling.max_new_tokens for one in self.first_samples)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Generate what is not there yet, grade, and write both files; returns the summary.

    Raises UserError for every mistake, before the engine starts.
    """
    started = time.perf_counter()
    asked = _prepare(settings)
    unfinished = Unfinished(settings.output, _deciding(asked))
    with contextlib.closing(unfinished):
        seconds = _generate(asked, unfinished)
    samples = _graded(asked, unfinished)
    write_generations(settings.output, samples)
    summary = _summary(asked, samples, unfinished, seconds)
    summary["seconds"] = time.perf_counter() - started
    summary = EvaluationSummary.from_keys(summary).to_json()
    write_whole(settings.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    unfinished.remove()
    return summary


def _prepare(settings: Settings) -> _Evaluation:
    """Everything that can be known without an engine."""
    check_settings(settings)
    task = get_task(settings.task, settings.grader, settings.prompt_key, settings.answer_key)
    sampling = _sampling(settings, task)
    problems: list[Problem] = slice_of(
        task.load(settings.data, settings.benchmarks), settings.start, settings.end, settings.limit
    )
    check_ids(problems)
    from megatron_probsft.evaluation.opened_model import open_model_folder

    model = open_model_folder(settings, task)
    requests = model.requests(problems, sampling, settings.seed)
    devices: Sequence[str | None] = []
    if model.server is None:
        devices = engine_devices(settings.tensor_parallel_size, settings.data_parallel_size)[: len(problems)]
    asked = _Evaluation(settings, task, sampling, model, requests, devices)
    if asked.shortened:
        least = min(one.max_new_tokens for one in asked.requests)
        print(
            f"{asked.shortened:,} of {len(problems):,} prompts leave room for fewer than --max-new-tokens "
            f"{sampling.max_new_tokens} (the least: {least}); they are cut where the room ends",
            flush=True,
        )
    return asked


def _sampling(settings: Settings, task: Task) -> Sampling:
    temperature = task.temperature if settings.temperature is None else settings.temperature
    samples = settings.samples or (task.samples if temperature > 0 else 1)
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples} at temperature 0 are all alike: set --temperature, as 1.0")
    return Sampling(samples, temperature, settings.max_new_tokens or task.max_new_tokens)


def _deciding(asked: _Evaluation) -> dict[str, Any]:
    """The settings that decide on the generations; an evaluation is resumed with the same ones only."""
    settings, sampling, model = asked.settings, asked.sampling, asked.model
    return {
        "--model": str(settings.model), "the model's weights": model.weights,
        "--task": settings.task, "--template": model.template, "--template-date": model.date,
        "--samples": sampling.samples,
        "--temperature": sampling.temperature, "--max-new-tokens": sampling.max_new_tokens,
        "--seed": settings.seed, "--dtype": settings.dtype, "--server": settings.server,
        "the served model": model.server.model if model.server else None,
        "the tokens that end it": model.stops, "the problems": _digest(asked.first_samples),
    }  # fmt: skip


def _digest(requests: list[Request]) -> str:
    """A name of the problems, of what is generated from, and of how much."""
    names = [[one.problem.benchmark, one.problem.id, one.prompt, one.max_new_tokens] for one in requests]
    return hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()


def _generate(asked: _Evaluation, unfinished: Unfinished) -> Seconds:
    """Have the engine generate what is missing; `unfinished` keeps it as it comes."""
    missing = [one for one in asked.requests if one.key not in unfinished.generations]
    if unfinished.resumed:
        print(f"resumed: {unfinished.resumed} of {len(asked.requests)} generations are there", flush=True)
    if not missing:
        return Seconds(0.0, 0.0)
    decoding = Decoding(asked.model.stops, asked.sampling.temperature)
    return _engine(asked).generate(missing, decoding, unfinished)


def _engine(asked: _Evaluation) -> Engine:
    settings = asked.settings
    return asked.model.server or VllmRunner(
        settings.model, settings.output / "vllm.log", kv_bytes_per_token(asked.model.config),
        dtype=settings.dtype, tensor_parallel_size=settings.tensor_parallel_size,
        max_model_len=settings.max_model_len, devices=asked.devices,
    )  # fmt: skip


def _graded(asked: _Evaluation, unfinished: Unfinished) -> list[Sample]:
    """Every request's generation with its grade."""
    generations = [unfinished.generations[one.key] for one in asked.requests]
    texts = [asked.model.text(one) for one in generations]
    grades = asked.task.grade([one.problem for one in asked.requests], texts)
    return [Sample(*one) for one in zip(asked.requests, generations, texts, grades, strict=True)]


def _summary(
    asked: _Evaluation, samples: list[Sample], unfinished: Unfinished, seconds: Seconds
) -> dict[str, Any]:
    """The content of summary.json, without the time that all took."""
    settings, task, sampling, model = asked.settings, asked.task, asked.sampling, asked.model
    cut_off = sum(one.generation.finish_reason == "length" for one in samples)
    return {
        "model": str(settings.model), "task": task.name, "task_version": task.version,
        "n": len(asked.first_samples), "samples": sampling.samples,
        **score_samples(task, samples, settings.seed),
        "cut_at_max_new_tokens": cut_off / len(samples),
        "grader": task.grader_name, "template": model.template, "template_date": model.date,
        "temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens, "seed": settings.seed,
        "start": settings.start, "end": settings.end, "limit": settings.limit, "data": settings.data,
        "server": settings.server, "served_model": model.server.model if model.server else None,
        "prompts_with_less_room": asked.shortened, **unfinished.engine,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": len(asked.devices) or None,
        "generated_tokens": sum(len(one.generation.tokens) for one in samples),
        "resumed_generations": unfinished.resumed,
        "tokens_per_second": unfinished.new_tokens / seconds.generation if seconds.generation else 0.0,
        "generation_seconds": seconds.generation, "startup_seconds": seconds.startup,
    }  # fmt: skip
