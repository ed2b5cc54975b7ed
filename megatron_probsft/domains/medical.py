r"""Medical multiple-choice questions, answered with reasoning that ends in the letter.

A row to train on, of the generator's:
    question  In which group of ICD-10-CM is "Fascioliasis" filed?
              A. Helminthiases
              B. Rickettsioses
              C. Other spirochetal diseases
              D. Bacterial and viral infectious agents
    response  "Fascioliasis" comes under "Other fluke infections", which is filed in the group
              "Helminthiases" of the chapter "Certain infectious and parasitic diseases". The answer is
              \boxed{A}.
    truth     A
A generation is right if it chooses option A, by the letter or by the option's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_probsft.data.text.named_templates import (
    BOXED,
    QWEN_BOXED,
    NamedTemplate,
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

_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # as Llama 3.2's chat template
_INSTRUCTION = f"\n{BOXED}"
_OPTION = re.compile(r"^\(?([A-Z])[.):]\s+(.+?)\s*$", re.MULTILINE)

LLAMA_PAPER = llama_paper(_DATES, f"\n{BOXED}")


# Data to train on. Generators are imported late: every command reads this file for its names.


def _generate(train: int | None, test: int | None, seed: int) -> Generated:
    from megatron_probsft.domains.generators import icd10

    return icd10.generate(train, test, seed).with_each(_filed)


def _filed(one: Example) -> Example:
    """The example with all keys of extra_info."""
    return replace(
        one, more=_more(one.question, one.response, one.truth, one.more["answer_string"], "") | one.more
    )


def _more(question: str, response: str, letter: str, answer: str, thinking: str) -> dict[str, object]:
    """The keys of extra_info that the paper's files have."""
    return {
        "answer_letter": letter,
        "answer_string": answer,
        "answer_thinking": thinking,
        "answer_raw": response,
        "options": dict(_OPTION.findall(question)),
        "question_instruction": question + _INSTRUCTION,
        "qwen_prompt": QWEN_BOXED.generation_text(question),
        "llama_prompt": LLAMA_PAPER.generation_text(question),
    }


def _convert(question: str, response: str, letter: str, answer: str, thinking: str) -> Converted:
    if not question.strip() or not response.strip():
        return "empty question or answer"
    if not letter.strip():
        return "no answer letter"
    return question, response, letter, _more(question, response, letter, answer, thinking)


# Evaluation.


def _read_row(row: dict[str, Any], where: str) -> Question:
    """A row of `prepare-data`, of the paper's file (prompt, options, answer_idx, source), or of MedQA."""
    extra = row.get("extra_info")
    if isinstance(extra, dict):
        prompt, options = extra.get("question"), extra.get("options")
        letter = (row.get("reward_model") or {}).get("ground_truth")
    else:
        prompt, options, letter = row.get("prompt"), row.get("options"), row.get("answer_idx")
    options = _options(options, where)
    if prompt is None and isinstance(row.get("question"), str):
        prompt = "\n".join([row["question"], *(f"{key}. {text}" for key, text in options.items())])
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: no question (extra_info.question, prompt or question)")
    if any(len(key) != 1 or not key.isupper() for key in options):
        raise UserError(f"{where}: the options must be named by capital letters, got {', '.join(options)}")
    if letter not in options:
        raise UserError(f"{where}: the answer {letter!r} is none of the options {', '.join(options)}")
    own_id = None if row.get("id") is None else str(row["id"])
    return Question(prompt, letter, own_id, {"options": options})


def _options(options: Any, where: str) -> dict[str, str]:
    """The texts by their letters, without those that are null, as parquet has it for missing ones."""
    if isinstance(options, str):
        options = json.loads(options) if options.startswith("{") else None
    if not isinstance(options, dict):
        raise UserError(f"{where}: no options (options or extra_info.options, letters with their texts)")
    return {str(key): str(text) for key, text in options.items() if text is not None}


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    from megatron_probsft.grading.choices import chosen

    grades = []
    for problem, text in zip(problems, texts, strict=True):
        letter = chosen(text, problem.details["options"])
        verdict = "unparsable" if letter is None else "correct" if letter == problem.answer else "wrong"
        grades.append(Grade(letter, verdict))
    return grades


_ANSWER = ("answer_letter", "answer_string")
DOMAIN = Domain(
    name="medical",
    version=1,
    place=2,
    # Prompts
    templates={
        "qwen-boxed": QWEN_BOXED,
        "llama-medical": NamedTemplate.of(llama3(_DATES, f"\n{BOXED}")),
        "deepseek-medical": NamedTemplate.of(deepseek("", f"\n{BOXED}", end="\n")),
        "llama-medical-paper": LLAMA_PAPER,
    },
    prompts={"chatml": "qwen-boxed", "llama": "llama-medical", "deepseek": "deepseek-medical"},
    paper_prompts={"chatml": "qwen-boxed", "llama": "llama-medical-paper"},
    # Data to train on
    hub_train="gaotang/medical_sft_processed:train",
    shapes=(
        Shape(
            tuple(f"extra_info.{name}" for name in ("question", "answer_raw", *_ANSWER, "answer_thinking")),
            _convert,
        ),
        # UCSC-VLAA/m23k-tokenized
        Shape(("prompt", "distilled_answer_string", *_ANSWER, "reasoning"), _convert),
    ),
    instruction=_INSTRUCTION,
    generator=Generator(generate=_generate, what="stand-in: questions on ICD-10-CM's chapters and blocks"),
    # Evaluation, greedy as in the paper
    benchmarks={"MedQA": "GBaker/MedQA-USMLE-4-options:test"},
    mixed_files=True,
    columns=(
        "extra_info.question, extra_info.options and reward_model.ground_truth; or prompt, or question, with "
        "options and answer_idx"
    ),
    read_row=_read_row,
    grade=_grade,
    max_new_tokens=8000,
    # Experiments, as in the paper and in small
    experiment=Experiment(
        seq_length=800, micro_batch_size=4, weight_decay=0.01, paper_micro_batch_size=16,
        small_seq_length=512, small_max_new_tokens=80,
    ),
)  # fmt: skip
