r"""Figlet puzzles: read the word that ASCII art spells, and answer nothing else.

A row to train on:
    question  What word does this say?

              ~|~  |\ |   /\   /~`  ~|~
              _|_  | \|  /~~\  \_,   |

    response  INACT
    truth     INACT
A generation is right if it is the word, to the character. Two more metrics are less strict: case_insensitive,
and jaro_winkler, the mean similarity (`grading.similarity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_probsft.data.text.named_templates import (
    NamedTemplate,
    chatml,
    deepseek,
    llama3,
    llama_paper,
)
from megatron_probsft.domains.benchmarks.loading import Question
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.domain import (
    Converted,
    Domain,
    Example,
    Experiment,
    Generated,
    Generator,
    Shape,
)
from megatron_probsft.grading.grade import Grade
from megatron_probsft.runtime.errors import UserError

_DECODE = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it "
    "represents and output only that without any explanations or additional text."
)
QWEN = NamedTemplate.of(chatml(_DECODE, "\n"))

LLAMA_PAPER = llama_paper(_DECODE, "")


# Data to train on. Generators are imported late: every command reads this file for its names.


def _generate(train: int | None, test: int | None, seed: int) -> Generated:
    from megatron_probsft.domains.generators import figlet_font

    return figlet_font.generate(train, test, seed).with_each(_filed)


def _filed(one: Example) -> Example:
    """The example with all keys of extra_info."""
    return replace(one, more=_more(one.question))


def _more(question: str) -> dict[str, str]:
    """The paper's prepared prompts."""
    return {
        "qwen_prompt": QWEN.generation_text(question),
        "llama_prompt": LLAMA_PAPER.generation_text(question),
    }


def _convert(question: str, word: str) -> Converted:
    if not question.strip() or not word:
        return "empty question or answer"
    return question, word, word, _more(question)


# Evaluation.


def _read_row(row: dict[str, Any], where: str) -> Question:
    extra = row.get("extra_info")
    if not isinstance(extra, dict):
        raise UserError(f"{where}: no extra_info; it has: {', '.join(row)}")
    for key in ("question", "answer"):
        if not isinstance(extra.get(key), str) or not extra[key].strip():
            raise UserError(f"{where}: extra_info.{key} must be text, got {extra.get(key)!r}")
    return Question(extra["question"], extra["answer"])


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    from megatron_probsft.grading.similarity import jaro_winkler

    return [
        Grade(text, "correct" if text == problem.answer else "wrong", jaro_winkler(text, problem.answer))
        for problem, text in zip(problems, texts, strict=True)
    ]


def _more_metrics(
    problems: Sequence[Problem], texts: Sequence[str], grades: Sequence[Grade]
) -> dict[str, Any]:
    both = list(zip(problems, texts, strict=True))
    return {
        "case_insensitive": sum(text.lower() == one.answer.lower() for one, text in both) / len(both),
        "jaro_winkler": sum(grade.similarity or 0.0 for grade in grades) / len(grades),
    }


DOMAIN = Domain(
    name="figfont",
    version=1,
    place=3,
    ability="figlet_font",
    # Prompts
    templates={
        "qwen-figlet": QWEN,
        "llama-figlet": NamedTemplate.of(llama3(_DECODE, "")),
        "deepseek-figlet": NamedTemplate.of(deepseek(f"{_DECODE}\n\n", "")),
        "llama-figlet-paper": LLAMA_PAPER,
    },
    prompts={"chatml": "qwen-figlet", "llama": "llama-figlet", "deepseek": "deepseek-figlet"},
    paper_prompts={"chatml": "qwen-figlet", "llama": "llama-figlet-paper"},
    # Data to train on
    hub_train="gaotang/figlet_font:train",
    hub_test="gaotang/figlet_font:test",
    shapes=(
        Shape(("extra_info.question", "extra_info.answer"), _convert),
        Shape(("question", "answer"), _convert),
    ),
    generator=Generator(
        generate=_generate, what="reasoning-gym's figlet_font, the same items as the paper's", real=True
    ),
    # Evaluation, greedy as in the paper
    benchmarks={"figlet_font": "gaotang/figlet_font:test"},
    own_test=True,
    columns="extra_info.question and extra_info.answer",
    read_row=_read_row,
    grade=_grade,
    more_metrics=_more_metrics,
    max_new_tokens=5,
    # Experiments, as in the paper and in small
    experiment=Experiment(
        seq_length=800, micro_batch_size=4, weight_decay=1e-5, paper_micro_batch_size=16,
        small_seq_length=800, small_max_new_tokens=8,
    ),
)  # fmt: skip
