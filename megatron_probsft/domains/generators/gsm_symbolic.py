r"""Word problems of GSM8K's kind from reasoning-gym, with solutions that end in `\boxed{…}`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from random import Random
from typing import Any

from megatron_probsft.domains.domain import Example, Generated, check_number
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.progress import tqdm

NAME = "generated stand-in: gsm_symbolic (reasoning-gym)"
TRAIN, TEST = 20_000, 500
_HELD_OUT = 17  # of 85 templates
_TRIES = 20  # per item asked for; a test item comes up once in five
_NOTES = (
    "A stand-in for the paper's NuminaMath data, not that.",
    "Its templates are test questions of GSM8K with other numbers: report no GSM8K score of a model "
    "trained on it.",
)


def generate(train: int | None, test: int | None, seed: int) -> Generated:
    """Problems of which no template is in both parts.

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
    tries = _TRIES * (sum(wanted.values()) + 100)
    found = _Found(wanted)
    found.take_from(create_dataset("gsm_symbolic", seed=seed, size=tries), held_out)
    about = {
        "generator": f"reasoning-gym=={version('reasoning-gym')} gsm_symbolic", "seed": seed,
        "test_templates": held_out, "train_templates": sorted(set(tasks_ok) - set(held_out)),
    }  # fmt: skip
    dropped = {reason: count for reason, count in found.dropped.items() if count}
    return Generated(found.parts["train"], found.parts["test"], about, _NOTES, dropped)


@dataclass
class _Found:
    """The examples of each part, as many as are wanted, and the number of items left out by reason."""

    wanted: dict[str, int]
    parts: dict[str, list[Example]] = field(default_factory=lambda: {"train": [], "test": []})
    dropped: dict[str, int] = field(
        default_factory=lambda: {"the same problem again": 0, "solution and answer differ": 0}
    )

    def take_from(self, dataset: Any, held_out: Iterable[int]) -> None:
        """Go through the items until there are enough. UserError: there never are."""
        seen: set[str] = set()
        bar = tqdm(total=sum(self.wanted.values()), unit=" items", desc="word problems", disable=None)
        with bar:
            for index, template in enumerate(dataset.task_indices):
                if all(len(self.parts[part]) == self.wanted[part] for part in self.wanted):
                    break
                part = "test" if template in held_out else "train"
                if len(self.parts[part]) < self.wanted[part]:
                    bar.update(self._take(part, dataset[index], index, template, seen))
        for part, examples in self.parts.items():
            if len(examples) < self.wanted[part]:
                raise UserError(
                    f"gsm_symbolic gave {len(examples):,} different problems for {part}: "
                    f"ask for as many by --{part}"
                )

    def _take(self, part: str, item: dict[str, Any], index: int, template: int, seen: set[str]) -> bool:
        """Take the item, or count it as left out; true if it was taken."""
        question, solution = item["question"], _solution(item["metadata"]["answer_cot"], item["answer"])
        new = question not in seen
        seen.add(question)
        if not new:
            self.dropped["the same problem again"] += 1
        elif solution is None:
            self.dropped["solution and answer differ"] += 1
        else:
            self.parts[part].append(Example(question, *solution, NAME, index, {"template": template}))
        return new and solution is not None


def _solution(reasoning: str, answer: str) -> tuple[str, str] | None:
    r"""`… #### 36.0` to (`… The answer is \boxed{36}.`, `36`); None where `answer` is another number."""
    text, mark, number = reasoning.rpartition("#### ")
    if not mark or not text.strip() or _number(number) != _number(answer):
        return None
    return f"{text.rstrip()}\nThe answer is \\boxed{{{_number(answer)}}}.", _number(answer)


def _number(text: str) -> str:
    value = float(text.replace(",", ""))
    return str(int(value)) if value.is_integer() else repr(value)
