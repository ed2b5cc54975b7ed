"""An evaluation from its settings to OUTPUT/generations.jsonl and OUTPUT/summary.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.data.text.named_templates import check_template_name
from megatron_probsft.domains.benchmarks.problems import Problem, check_ids, cut, sample_seed
from megatron_probsft.domains.templates import family_of, template_for
from megatron_probsft.evaluation.engines.server import Server, served_engine
from megatron_probsft.evaluation.engines.vllm_runner import (
    Engine,
    Generation,
    Seconds,
    generate,
    kv_bytes_per_token,
)
from megatron_probsft.evaluation.model_folder import check_model_folder, fingerprint
from megatron_probsft.evaluation.scoring.results import scores, write_generations
from megatron_probsft.evaluation.settings import Settings, check_numbers
from megatron_probsft.evaluation.tasks import get_task
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.evaluation.unfinished import Unfinished, settings_of
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable, write_whole
from megatron_probsft.runtime.run_files.scoring import EvaluationSummary


@dataclass(frozen=True)
class _Sampling:
    samples: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class _Missing:
    """What of a problem is still to be generated."""

    problem: Problem
    prompt: list[int]
    max_new_tokens: int
    samples: list[int]


def evaluate(settings: Settings) -> dict[str, Any]:
    """Generate what is not there yet, grade, and write both files; returns the summary.

    Raises UserError for every mistake, before the engine starts.
    """
    started = time.perf_counter()
    _check(settings)
    task = get_task(settings.task, settings.grader, settings.prompt_key, settings.answer_key)
    sampling = _sampling(settings, task)
    problems = cut(
        task.load(settings.data, settings.benchmarks), settings.start, settings.end, settings.limit
    )
    check_ids(problems)
    # Here: it imports transformers, which takes seconds, and most mistakes are found without it.
    from megatron_probsft.evaluation.model_files import encode, load_model_files, stop_tokens, template_date

    tokenizer, config, ends = load_model_files(settings.model)
    template = settings.template or _default_template(task, tokenizer)
    heads = getattr(config, "num_attention_heads", None)
    if heads and heads % settings.tensor_parallel_size:
        raise UserError(
            f"--tensor-parallel-size {settings.tensor_parallel_size} does not divide the model's {heads} "
            "attention heads"
        )
    weights = fingerprint(settings.model)
    server = _server(settings.server, settings.model, weights) if settings.server else None
    max_model_len = server.max_model_len if server else settings.max_model_len
    positions = getattr(config, "max_position_embeddings", None)
    date = settings.template_date or template_date(
        settings.model, tokenizer, template, settings_of(settings.output).get("--template-date")
    )
    prompts, longest = encode(
        tokenizer, problems, template, sampling.max_new_tokens, max_model_len, positions, date
    )
    shortened = sum(most < sampling.max_new_tokens for most in longest)
    if shortened:
        print(
            f"{shortened:,} of {len(prompts):,} prompts leave room for fewer than --max-new-tokens "
            f"{sampling.max_new_tokens} (the least: {min(longest)}); they are cut where the room ends",
            flush=True,
        )
    stops = stop_tokens(settings.model, tokenizer, template, ends)
    deciding = {
        "--model": str(settings.model), "the model's weights": weights,
        "--task": settings.task, "--template": template, "--template-date": date,
        "--samples": sampling.samples,
        "--temperature": sampling.temperature, "--max-new-tokens": sampling.max_new_tokens,
        "--seed": settings.seed, "--dtype": settings.dtype, "--server": settings.server,
        "the served model": server.model if server else None, "the tokens that end it": stops,
        "the problems": _digest(problems, prompts, longest),
    }  # fmt: skip
    unfinished = Unfinished(settings.output, deciding)
    try:
        seconds = _generate(
            settings, sampling, server, problems, prompts, longest, unfinished, tokenizer, config, stops
        )
    finally:
        unfinished.close()
    repeated = [problem for problem in problems for _ in range(sampling.samples)]
    generations = [
        unfinished.generations[problem.benchmark, problem.id, sample]
        for problem in problems
        for sample in range(sampling.samples)
    ]
    texts = [_text(tokenizer, one) for one in generations]
    grades = task.grade(repeated, texts)
    write_generations(settings.output, sampling.samples, settings.seed, repeated, generations, texts, grades)
    new_tokens = sum(len(one.tokens) for one in list(unfinished.generations.values())[unfinished.resumed :])
    summary = {
        "model": str(settings.model), "task": task.name, "n": len(problems), "samples": sampling.samples,
        **scores(task, sampling.samples, settings.seed, repeated, texts, grades),
        "cut_at_max_new_tokens": sum(one.finish_reason == "length" for one in generations) / len(generations),
        "grader": settings.grader if task.domain is None else task.name, "template": template,
        "template_date": date,
        "temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens, "seed": settings.seed,
        "start": settings.start, "end": settings.end, "limit": settings.limit, "data": settings.data,
        "server": settings.server, "served_model": server.model if server else None,
        "prompts_with_less_room": shortened, **unfinished.engine,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "generated_tokens": sum(len(one.tokens) for one in generations),
        "resumed_generations": unfinished.resumed,
        "tokens_per_second": new_tokens / seconds.generation if seconds.generation else 0.0,
        "generation_seconds": seconds.generation, "startup_seconds": seconds.startup,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    summary = EvaluationSummary.from_keys(summary).to_json()
    write_whole(settings.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    unfinished.remove()
    return summary


def _generate(
    settings: Settings, sampling: _Sampling, server: Server | None, problems: list[Problem],
    prompts: list[list[int]], longest: list[int], unfinished: Unfinished, tokenizer: Any, config: Any,
    stops: list[int],
) -> Seconds:  # fmt: skip
    """What is missing, kept in `unfinished` as it comes."""
    missing = [
        _Missing(problem, prompt, most, samples)
        for problem, prompt, most in zip(problems, prompts, longest, strict=True)
        if (samples := [
            sample for sample in range(sampling.samples)
            if (problem.benchmark, problem.id, sample) not in unfinished.generations
        ])
    ]  # fmt: skip
    if unfinished.resumed:
        total = len(problems) * sampling.samples
        print(f"resumed: {unfinished.resumed} of {total} generations are there", flush=True)
    if not missing:
        return Seconds(0.0, 0.0)

    def finished(place: int, sample: int, generation: Generation) -> None:
        unfinished.add(missing[place].problem, missing[place].samples[sample], generation)

    def engine(one: Engine) -> None:
        unfinished.set_engine(dataclasses.asdict(one))

    left, most = [one.prompt for one in missing], [one.max_new_tokens for one in missing]
    seeds = [[sample_seed(settings.seed, one.problem, sample) for sample in one.samples] for one in missing]
    if server:
        engine(served_engine(server))
        return server.generate(
            left, seeds, max_new_tokens=most, stop_token_ids=stops,
            temperature=sampling.temperature, tokenizer=tokenizer, finished=finished,
        )  # fmt: skip
    return generate(
        settings.model, left, seeds, max_new_tokens=most, stop_token_ids=stops,
        log=settings.output / "vllm.log", finished=finished, started=engine,
        temperature=sampling.temperature, dtype=settings.dtype,
        tensor_parallel_size=settings.tensor_parallel_size, max_model_len=settings.max_model_len,
        kv_bytes_per_token=kv_bytes_per_token(config),
    )  # fmt: skip


def _text(tokenizer: Any, one: Generation) -> str:
    tokens = one.tokens[:-1] if one.finish_reason == "stop" else one.tokens
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _digest(problems: list[Problem], prompts: list[list[int]], longest: list[int]) -> str:
    """Names the problems, what is generated from, and how much."""
    names = [
        [one.benchmark, one.id, prompt, most]
        for one, prompt, most in zip(problems, prompts, longest, strict=True)
    ]
    return hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()


def _server(url: str, model: Path, weights: str) -> Server:
    """The server. Raises UserError: as far as this machine can see, it serves another model."""
    server = Server(url, str(model))
    if (Path(server.root) / "config.json").is_file() and fingerprint(Path(server.root)) != weights:
        raise UserError(
            f"--server {url} serves {server.root}, whose weights are not those of --model {model}"
        )
    print(f"{url} serves {server.model}", flush=True)
    return server


def _default_template(task: Task, tokenizer: Any) -> str:
    if task.domain is None:
        return "chat"
    try:
        return template_for(task.domain, family_of(tokenizer))
    except UserError as error:
        raise UserError(f"{error}: name a --template, as chat or plain") from None


def _sampling(settings: Settings, task: Task) -> _Sampling:
    temperature = task.temperature if settings.temperature is None else settings.temperature
    samples = settings.samples or (task.samples if temperature > 0 else 1)
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples} at temperature 0 are all alike: set --temperature, as 1.0")
    return _Sampling(samples, temperature, settings.max_new_tokens or task.max_new_tokens)


def _check(settings: Settings) -> None:
    check_numbers(vars(settings))
    if settings.start is not None and settings.start < 0:
        raise UserError(f"--start must be at least 0, got {settings.start}")
    if settings.end is not None and settings.end <= (settings.start or 0):
        raise UserError(f"--end must be greater than --start {settings.start or 0}, got {settings.end}")
    own = (settings.dtype != "auto", settings.tensor_parallel_size > 1, settings.max_model_len is not None)
    if settings.server and any(own):
        raise UserError(
            "--dtype, --tensor-parallel-size and --max-model-len are the server's own: leave them out with "
            "--server"
        )
    if settings.template is not None:
        check_template_name(settings.template)
    if (settings.output / "summary.json").exists():
        raise UserError(f"--output {settings.output} holds a finished evaluation: name another folder")
    if (settings.output / "generations.jsonl").is_dir():
        raise UserError(f"--output {settings.output}: its generations.jsonl is a folder: name another folder")
    check_writable(settings.output, "--output")
    check_model_folder(settings.model)
