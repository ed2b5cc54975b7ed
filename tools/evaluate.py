"""Generate with vLLM for every prompt of a jsonl file, grade, and write generations and a summary.

python tools/evaluate.py --model HF_FOLDER --task test.jsonl --output runs/scores/test --grader number

OUTPUT/generations.jsonl  one line per problem and sample: prompt, answer, generation, finish_reason, correct
OUTPUT/summary.json       accuracy with its 95 % interval, and all settings; OUTPUT/vllm.log what vLLM printed
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from megatron_probsft.data.templates import TEMPLATES, check_template, encode_prompt
from megatron_probsft.data.tokenizers import load_tokenizer
from megatron_probsft.evaluation.graders import Grader, get_grader
from megatron_probsft.evaluation.scoring import score
from megatron_probsft.evaluation.vllm_runner import generate, kv_bytes_per_token
from megatron_probsft.runtime.errors import UserError, one_line_errors


@dataclass(frozen=True)
class Problem:
    index: int  # of the row in the file: names the seed, whatever --limit is
    prompt: str
    answer: str
    where: str  # file and line


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All that the command does but printing the table; returns the summary."""
    started = time.perf_counter()
    _check(args)
    grader = get_grader(args.grader)
    problems = read_problems(args.task, args.prompt_key, args.answer_key, args.limit)
    tokenizer, config, stops = load_model_files(args.model)
    prompts = encode(tokenizer, problems, args, getattr(config, "max_position_embeddings", None))
    _grade(grader, [(problem, "") for problem in problems])  # refuses unusable answers before the work
    seeds = [[sample_seed(args.seed, p.index, s) for s in range(args.samples)] for p in problems]
    args.output.mkdir(parents=True, exist_ok=True)
    generated = generate(
        args.model, prompts, seeds, max_new_tokens=args.max_new_tokens, stop_token_ids=stops,
        log=args.output / "vllm.log", temperature=args.temperature, dtype=args.dtype,
        tensor_parallel_size=args.tensor_parallel_size, max_model_len=args.max_model_len,
        kv_bytes_per_token=kv_bytes_per_token(config),
    )  # fmt: skip
    flat = [one for samples in generated.generations for one in samples]
    texts = [
        tokenizer.decode(
            one.tokens[:-1] if one.finish_reason == "stop" else one.tokens,
            skip_special_tokens=True, clean_up_tokenization_spaces=False,
        )
        for one in flat
    ]  # fmt: skip
    repeated = [problem for problem in problems for _ in range(args.samples)]
    grades = _grade(grader, list(zip(repeated, texts, strict=True)))
    with (args.output / "generations.jsonl").open("w") as lines:
        for i, (problem, one) in enumerate(zip(repeated, flat, strict=True)):
            line = {
                "index": problem.index, "sample": i % args.samples, "prompt": problem.prompt,
                "answer": problem.answer, "generation": texts[i], "finish_reason": one.finish_reason,
                "tokens": len(one.tokens), "correct": int(grades[i]),
                "seed": seeds[i // args.samples][i % args.samples],
            }  # fmt: skip
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    accuracy, interval = score(
        [grades[i : i + args.samples] for i in range(0, len(grades), args.samples)], args.seed
    )
    tokens = sum(len(one.tokens) for one in flat)
    summary = {
        "model": str(args.model), "task": str(args.task), "grader": args.grader, "n": len(problems),
        "samples": args.samples, "accuracy": accuracy, "accuracy_ci95": interval,
        "cut_at_max_new_tokens": sum(one.finish_reason == "length" for one in flat) / len(flat),
        "template": args.template, "temperature": args.temperature, "max_new_tokens": args.max_new_tokens,
        "seed": args.seed, "dtype": generated.dtype, "device": generated.device, "vllm": generated.vllm,
        "tensor_parallel_size": args.tensor_parallel_size, "generated_tokens": tokens,
        "tokens_per_second": tokens / generated.generation_seconds,
        "generation_seconds": generated.generation_seconds,
        "startup_seconds": generated.startup_seconds, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    unfinished = args.output / "summary.json.tmp"  # a summary means that the evaluation is complete
    unfinished.write_text(json.dumps(summary, indent=2) + "\n")
    unfinished.rename(args.output / "summary.json")
    return summary


def read_problems(task: Path, prompt_key: str, answer_key: str, limit: int | None) -> list[Problem]:
    """Rows of a jsonl file. Raises UserError naming file and line."""
    if not task.is_file():
        raise UserError(f"--task {task} does not exist")
    problems: list[Problem] = []
    with task.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if limit is not None and len(problems) == limit:
                break
            where = f"{task} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON or of UTF-8
                raise UserError(f"{where} is not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} must be a JSON object, got {type(row).__name__}")
            for flag, key in (("--prompt-key", prompt_key), ("--answer-key", answer_key)):
                if key not in row:
                    raise UserError(f"{where} has no key {key!r} ({flag}); it has: {', '.join(row)}")
            prompt, answer = row[prompt_key], row[answer_key]
            if not isinstance(prompt, str):
                raise UserError(f"{where}: {prompt_key!r} must be text, got {type(prompt).__name__}")
            if not isinstance(answer, str | int | float) or isinstance(answer, bool):
                raise UserError(
                    f"{where}: {answer_key!r} must be text or a number, got {type(answer).__name__}"
                )
            problems.append(Problem(len(problems), prompt, str(answer), where))
    if not problems:
        raise UserError(f"--task {task} holds no rows")
    return problems


def load_model_files(model: Path) -> tuple[Any, Any, list[int]]:
    """Tokenizer, text config and the tokens that end a generation, of a Hugging Face folder."""
    if not (model / "config.json").is_file():
        what = "has no config.json" if model.is_dir() else "is no folder"
        raise UserError(f"--model {model} {what}: give a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    settings = model / "generation_config.json"
    ends = json.loads(settings.read_text()).get("eos_token_id") if settings.is_file() else config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return tokenizer, config.get_text_config(), sorted(stops)


def encode(
    tokenizer: Any, problems: list[Problem], args: argparse.Namespace, positions: int | None
) -> list[list[int]]:
    """Token ids of every prompt, each checked to leave room for --max-new-tokens."""
    check_template(tokenizer, args.template)
    if args.max_model_len and positions and args.max_model_len > positions:
        raise UserError(f"--max-model-len {args.max_model_len} exceeds the model's {positions} positions")
    room = args.max_model_len or positions
    limit = f"--max-model-len {room}" if args.max_model_len else f"the model's {room} positions"
    prompts = []
    for problem in problems:
        tokens = encode_prompt(tokenizer, problem.prompt, args.template)
        if not tokens:
            raise UserError(f"{problem.where}: the prompt is empty")
        if room and len(tokens) + args.max_new_tokens > room:
            raise UserError(
                f"{problem.where}: {len(tokens)} prompt tokens and --max-new-tokens {args.max_new_tokens} "
                f"exceed {limit}"
            )
        prompts.append(tokens)
    return prompts


def sample_seed(seed: int, index: int, sample: int) -> int:
    """One per problem and sample, as a shared one correlates their noise; below 2^53, exact in any JSON."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}/{sample}".encode(), digest_size=6).digest())


def _grade(grader: Grader, graded: list[tuple[Problem, str]]) -> list[bool]:
    grades = []
    for problem, text in graded:
        try:
            grades.append(grader(text, problem.answer))
        except UserError as error:
            raise UserError(f"{problem.where}: {error}") from None
    return grades


def _check(args: argparse.Namespace) -> None:
    for name in ("limit", "samples", "max_new_tokens", "tensor_parallel_size", "max_model_len"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.temperature < math.inf:
        raise UserError(f"--temperature must be a number of at least 0, got {args.temperature}")
    if args.samples > 1 and args.temperature == 0:
        raise UserError(f"--samples {args.samples} at temperature 0 are all alike: set --temperature, as 1.0")
    if (args.output / "summary.json").exists():
        raise UserError(f"--output {args.output} holds a finished evaluation: name another folder")


def _print_table(summary: dict[str, Any], output: Path) -> None:
    low, high = summary["accuracy_ci95"]
    table = Table(title=f"{Path(summary['task']).name} · {summary['model']}", title_justify="left")
    columns = {
        "accuracy": f"{summary['accuracy']:.1%}",
        "95 % interval": f"{low:.1%} – {high:.1%}",
        "problems": f"{summary['n']:,}",
        "samples": str(summary["samples"]),
        "grader": summary["grader"],
        "cut": f"{summary['cut_at_max_new_tokens']:.1%}",
        "dtype": summary["dtype"],
        "tokens/s": f"{summary['tokens_per_second']:,.0f}",
        "seconds": f"{summary['seconds']:.1f}",
    }
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*columns.values())
    Console(width=None if Console().is_terminal else 110).print(table)
    print(f"wrote {output / 'summary.json'} and generations.jsonl")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="Hugging Face folder")
    add("--task", type=Path, required=True, help="jsonl file, a prompt and an answer in each row")
    add("--output", type=Path, required=True, help="new folder")
    add("--grader", default="exact", help="exact, number or math (default: exact)")
    add("--template", default="chat", help=f"as in training: {', '.join(TEMPLATES)} (default: chat)")
    add("--prompt-key", default="prompt")
    add("--answer-key", default="answer")
    add("--limit", type=int, help="first N problems only")
    add("--samples", type=int, default=1, help="generations per problem (default: 1)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--max-new-tokens", type=int, default=64)
    add("--seed", type=int, default=1234)
    add("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="auto: as vLLM chooses")
    add("--tensor-parallel-size", type=int, default=1)
    add("--max-model-len", type=int, help="default: the longest prompt + --max-new-tokens")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    with one_line_errors():
        _print_table(evaluate(args), args.output)


if __name__ == "__main__":
    main()
