r"""Mathematical problems, solutions with `\boxed{…}`; word problems of gsm_symbolic as a stand-in."""

from __future__ import annotations

from importlib.metadata import version
from random import Random
from typing import Any

from tqdm import tqdm

from megatron_probsft.domains.domain import (
    Converted,
    Domain,
    Example,
    Generated,
    Shape,
    check_number,
)
from megatron_probsft.grading.boxed import boxed
from megatron_probsft.runtime.errors import UserError

TRAIN, TEST = 20_000, 500
_HELD_OUT = 17  # of 85 templates
_TRIES = 20  # per item asked for; a test item comes up once in five


def generate(train: int | None, test: int | None, seed: int) -> Generated:
    r"""gsm_symbolic's word problems, whose solutions end in `\boxed{N}`; no template is in both parts.

    Raises UserError: the generator has no so many different problems; reasoning-gym is not installed.
    """
    check_number("train", train)
    check_number("test", test)
    try:
        from reasoning_gym import create_dataset  # here: it takes seconds
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok
    except ImportError:
        raise UserError("word problems need reasoning-gym: pip install reasoning-gym==0.1.25") from None
    wanted = {"train": TRAIN if train is None else train, "test": TEST if test is None else test}
    held_out = sorted(Random(seed).sample(tasks_ok, _HELD_OUT))
    name = "generated stand-in: gsm_symbolic (reasoning-gym)"
    tries = _TRIES * (sum(wanted.values()) + 100)
    dataset: Any = create_dataset("gsm_symbolic", seed=seed, size=tries)
    found: dict[str, list[Example]] = {"train": [], "test": []}
    seen, dropped = set(), {"the same problem again": 0, "solution and answer differ": 0}
    bar = tqdm(total=sum(wanted.values()), unit=" items", desc="word problems", disable=None)
    with bar:
        for index, task in enumerate(dataset.task_indices):
            if all(len(found[part]) == wanted[part] for part in wanted):
                break
            part = "test" if task in held_out else "train"
            if len(found[part]) == wanted[part]:
                continue
            item = dataset[index]
            solution = _solution(item["metadata"]["answer_cot"], item["answer"])
            if item["question"] in seen:
                dropped["the same problem again"] += 1
            elif solution is None:
                dropped["solution and answer differ"] += 1
            else:
                response, number = solution
                found[part].append(
                    Example(item["question"], response, number, name, index, {"template": task})
                )
                bar.update()
            seen.add(item["question"])
    for part, examples in found.items():
        if len(examples) < wanted[part]:
            raise UserError(
                f"gsm_symbolic gave {len(examples):,} different problems for {part}: "
                f"ask for as many by --{part}"
            )
    return Generated(
        name, found["train"], found["test"],
        {
            "generator": f"reasoning-gym=={version('reasoning-gym')} gsm_symbolic", "seed": seed,
            "test_templates": held_out, "train_templates": sorted(set(tasks_ok) - set(held_out)),
        },
        (
            "A stand-in for the paper's NuminaMath data, not that.",
            "Its templates are test questions of GSM8K with other numbers: report no GSM8K score of a model "
            "trained on it.",
        ),
        {reason: count for reason, count in dropped.items() if count},
    )  # fmt: skip


def _solution(reasoning: str, answer: str) -> tuple[str, str] | None:
    r"""`… #### 36.0` to (`… The answer is \boxed{36}.`, `36`); None where `answer` is another number."""
    text, mark, number = reasoning.rpartition("#### ")
    if not mark or not text.strip() or _number(number) != _number(answer):
        return None
    return f"{text.rstrip()}\nThe answer is \\boxed{{{_number(answer)}}}.", _number(answer)


def _number(text: str) -> str:
    value = float(text.replace(",", ""))
    return str(int(value)) if value.is_integer() else repr(value)


def _convert(question: str, solution: str) -> Converted:
    if not question.strip() or not solution.strip():
        return "empty question or answer"
    truth = boxed(solution)
    return "no \\boxed{…} in the solution" if truth is None else (question, solution, truth, {})


DOMAIN = Domain(
    name="math",
    ability="math",
    hub_train="gaotang/numina-cot-subset-67k:train",
    hub_test=None,
    shapes=(
        Shape(("extra_info.question", "extra_info.answer"), _convert),
        Shape(("question", "answer"), _convert),
        Shape(("problem", "solution"), _convert),  # AI-MO/NuminaMath-CoT
    ),
    generate=generate,
    generator="stand-in: reasoning-gym's gsm_symbolic word problems",
    instruction=" Let's think step by step and output the final answer within \\boxed{}.",
)
