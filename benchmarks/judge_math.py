"""How fast are mathematical answers judged?

    python benchmarks/judge_math.py --data ../shared/data/math --json FILE

Generations: a page of reasoning and a boxed answer, in every third the problem's own, else another one's of
the same benchmark. `math-verify` is its own `parse` and `verify` in a loop, on a share of them, scaled.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from math_verify import parse, verify

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import hardware, show, write_json
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.registry import get_domain

COLUMNS = {
    "implementation": "{implementation}",
    "generations": "{generations:,}",
    "seconds": "{seconds:.1f}",
    "CPU seconds": "{cpu_seconds:.1f}",
    "per second": "{per_second:,.0f}",
}
PAGE = "We add $x^2$ to both sides and find that it holds. " * 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="benchmark files or folders")
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--peer", type=int, default=300, help="as many by math-verify in a loop")
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # of math-verify, on every expression that it cannot parse
    problems, texts = _generations(get_domain("math").load(args.data, None), args.generations)

    started, cpu = time.perf_counter(), _cpu_seconds()
    grades = get_domain("math").grade(problems, texts)
    ours = time.perf_counter() - started, _cpu_seconds() - cpu

    chosen = random.Random(1).sample(range(len(texts)), min(args.peer, len(texts)))
    started, cpu = time.perf_counter(), _cpu_seconds()
    for place in chosen:
        verify(parse(f"\\boxed{{{problems[place].answer}}}"), parse(texts[place]))
    scale = len(texts) / len(chosen)
    peer = (time.perf_counter() - started) * scale, (_cpu_seconds() - cpu) * scale

    records: list[dict[str, Any]] = [
        {
            "implementation": name, "generations": len(texts), "seconds": seconds,
            "cpu_seconds": cpu_seconds, "per_second": len(texts) / seconds, **hardware(),
        }
        for name, (seconds, cpu_seconds) in (("megatron_probsft", ours), ("math-verify", peer))
    ]  # fmt: skip
    records[0]["verdicts"] = Counter(grade.verdict for grade in grades)
    show(f"judging mathematical answers, {hardware()['hardware']}", COLUMNS, records)
    print(dict(records[0]["verdicts"]))
    write_json(args.json, records)


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for; tells more than the clock where others compute too."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _generations(everything: list[Problem], count: int) -> tuple[list[Problem], list[str]]:
    generator = random.Random(0)
    answers: dict[str, list[str]] = {}
    for problem in everything:
        answers.setdefault(problem.benchmark, []).append(problem.answer)
    problems = [everything[place % len(everything)] for place in range(count)]
    chosen = [
        problem.answer if place % 3 == 0 else generator.choice(answers[problem.benchmark])
        for place, problem in enumerate(problems)
    ]
    return problems, [f"{PAGE}\\boxed{{{answer}}}" for answer in chosen]


if __name__ == "__main__":
    main()
