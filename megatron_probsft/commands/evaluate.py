"""Generate with vLLM for the problems of a task, grade, and write generations and a summary.

probsft evaluate --task math --data BENCHMARKS --model HF_FOLDER --output runs/scores/math
probsft evaluate --task medical --data runs/data/medical --model HF_FOLDER --output runs/medical
probsft evaluate --task figfont --data runs/data/figfont --model HF_FOLDER --output runs/figfont
probsft evaluate --task test.jsonl --grader number --model HF_FOLDER --output runs/scores/test

A task's defaults are the paper's: {defaults}. An interrupted evaluation is resumed by the same command.

Columns of the data; where a row has several of those between "or", the first one counts:
{columns}
A row's data_source{or_source}, names its benchmark; without it the file does.

OUTPUT/generations.jsonl  one line per problem and sample: generation, prediction, verdict, correct, seed, …
OUTPUT/summary.json       per benchmark and on average: mean@n with its 95 % interval, pass@k, majority@n, …
OUTPUT/vllm.log           what vLLM printed
"""

import argparse
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_probsft.data.text.named_templates import template_names
from megatron_probsft.domains.domain import Domain
from megatron_probsft.domains.registry import domains
from megatron_probsft.evaluation.settings import Settings
from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import one_line_errors

_WIDTH = 110  # columns of the help


def description() -> str:
    """The text above, with what each domain says of itself."""
    known = domains()
    defaults = "; ".join(f"{name} {_sampling(one)}" for name, one in known.items())
    columns = {"FILE": "prompt (--prompt-key) and answer (--answer-key)"}
    columns |= {name: one.columns for name, one in known.items()}
    wide = max(map(len, columns)) + 4
    lines = [
        textwrap.fill(
            text, _WIDTH, initial_indent=f"  {name}".ljust(wide), subsequent_indent=" " * wide,
            break_on_hyphens=False,
        )
        for name, text in columns.items()
    ]  # fmt: skip
    mixed = ", ".join(name for name, one in known.items() if one.mixed_files)
    return str(__doc__).format(
        defaults=textwrap.fill(defaults, _WIDTH, initial_indent=" " * 34).lstrip(),
        columns="\n".join(lines),
        or_source=f", or source ({mixed})" if mixed else "",
    )


def _sampling(domain: Domain) -> str:
    if domain.samples == 1:
        return f"greedy, {domain.max_new_tokens} new tokens"
    return (
        f"{domain.samples} samples at temperature {domain.temperature:g}, {domain.max_new_tokens} new tokens"
    )


def parse_arguments(arguments: list[str] | None = None) -> Settings:
    """Read the command line; without `arguments` that of this process."""
    parser = argparse.ArgumentParser(
        description=description(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    names = ", ".join(domains())
    templates = ", ".join(template_names())
    add("--model", type=Path, required=True, help="Hugging Face folder")
    add("--task", required=True, help=f"{names}, or FILE, a .jsonl with prompts and answers")
    add("--output", type=Path, required=True, help="new folder, or that of an interrupted evaluation")
    add("--data", nargs="+", default=[], help="files or folders (default: the task's benchmarks on the hub)")
    add("--benchmarks", nargs="+", help="use these benchmarks only (default: all there are)")
    add("--template", help=f"as in training: {templates} (default: the domain's; chat for a file)")
    add("--template-date", help="YYYY-MM-DD that a chat template prints (default: as trained, or today)")
    add("--grader", default="exact", help="how a FILE is graded: exact, number or math (default: exact)")
    add("--prompt-key", default="prompt", help="column of a FILE that holds the prompt (default: prompt)")
    add("--answer-key", default="answer", help="column of a FILE that holds the answer (default: answer)")
    add("--limit", type=int, help="use the first N problems of each benchmark only")
    add("--start", type=int, help="begin with this problem of each benchmark, counted from 0")
    add("--end", type=int, help="stop before this problem of each benchmark")
    add("--samples", type=int, help="generations per problem (default: the task's; a file's: 1)")
    add("--temperature", type=float, help="0 is greedy (default: the task's; a file's: 0)")
    add("--max-new-tokens", type=int, help="longest generation (default: the task's; a file's: 64)")
    add("--seed", type=int, default=1234, help="seed of the sampling and of the intervals (default: 1234)")
    add("--server", help="OpenAI-compatible server of the model, as http://localhost:8000/v1")
    add("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="auto: as vLLM chooses")
    add("--tensor-parallel-size", type=int, default=1, help="GPUs that share the model (default: 1)")
    add("--data-parallel-size", type=int, help="engines side by side (default: GPUs ÷ those of an engine)")
    add("--max-model-len", type=int, help="default: the longest prompt + --max-new-tokens")
    return Settings(**vars(parser.parse_args(arguments)))


def print_table(summary: dict[str, Any], output: Path) -> None:
    """Print a row for each benchmark, and their average if there are several."""
    samples = summary["samples"]
    rows = dict(summary["benchmarks"])
    if len(rows) > 1:
        total = {key: sum(one[key] for one in rows.values()) for key in ("n", "timeouts", "unparsable")}
        rows["average"] = {**total, **summary["average"]}
    table = Table(title=f"{Path(summary['task']).name} · {summary['model']}", title_justify="left")
    table.add_column("benchmark")
    heads = ["problems", f"mean@{samples}" if samples > 1 else "accuracy", "95 % interval"]
    if samples > 1:
        largest = list(summary["average"]["pass_at_k"])[-1]
        heads += ["first sample", f"pass@{largest}", f"majority@{samples}"]
    if "jaro_winkler" in summary["average"]:
        heads += ["any case", "Jaro-Winkler"]
    for head in [*heads, "unparsable", "timeouts"]:
        table.add_column(head, justify="right")
    for name, one in rows.items():
        low, high = one["accuracy_ci95"]
        cells = [f"{one['n']:,}", f"{one['accuracy']:.1%}", f"{low:.1%} – {high:.1%}"]
        if samples > 1:
            cells += [f"{one['first_sample_accuracy']:.1%}", f"{one['pass_at_k'][largest]:.1%}"]
            cells += [f"{one['majority_at_n']:.1%}"]
        if "jaro_winkler" in one:
            cells += [f"{one['case_insensitive']:.1%}", f"{one['jaro_winkler']:.3f}"]
        table.add_row(name, *cells, f"{one['unparsable']:,}", f"{one['timeouts']:,}")
    console().print(table)
    print(
        f"template {summary['template']} | {summary['cut_at_max_new_tokens']:.1%} cut at --max-new-tokens "
        f"{summary['max_new_tokens']} | {summary['tokens_per_second']:,.0f} tokens/s | "
        f"{summary['seconds']:.1f} s"
    )
    print(f"wrote {output / 'summary.json'} and generations.jsonl")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the engine, too
    with one_line_errors():
        settings = parse_arguments()
        from megatron_probsft.evaluation.run import evaluate  # here: --help does without all that it imports

        print_table(evaluate(settings), settings.output)


if __name__ == "__main__":
    main()
