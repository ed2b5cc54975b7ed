"""Medical multiple-choice questions, answered with reasoning that ends in the letter."""

from __future__ import annotations

import re
from dataclasses import replace

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.domains.domain import Converted, Domain, Example, Generated, Shape
from megatron_probsft.domains.generators import icd10

_INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_OPTION = re.compile(r"^\(?([A-Z])[.):]\s+(.+?)\s*$", re.MULTILINE)


def generate(train: int | None, test: int | None, seed: int) -> Generated:
    """As `icd10.generate`."""
    made = icd10.generate(train, test, seed)
    return replace(made, train=[_filed(one) for one in made.train], test=[_filed(one) for one in made.test])


def _filed(one: Example) -> Example:
    return replace(
        one, more=_more(one.question, one.response, one.truth, one.more["answer_string"], "") | one.more
    )


def _more(question: str, response: str, letter: str, answer: str, thinking: str) -> dict[str, object]:
    return {
        "answer_letter": letter,
        "answer_string": answer,
        "answer_thinking": thinking,
        "answer_raw": response,
        "options": dict(_OPTION.findall(question)),
        "question_instruction": question + _INSTRUCTION,
        "qwen_prompt": NAMED_TEMPLATES["qwen-boxed"].generation_text(question),
        "llama_prompt": NAMED_TEMPLATES["llama-medical-paper"].generation_text(question),
    }


def _convert(question: str, response: str, letter: str, answer: str, thinking: str) -> Converted:
    if not question.strip() or not response.strip():
        return "empty question or answer"
    if not letter.strip():
        return "no answer letter"
    return question, response, letter, _more(question, response, letter, answer, thinking)


_NAMES = ("answer_letter", "answer_string")
DOMAIN = Domain(
    name="medical",
    ability="medical",
    hub_train="gaotang/medical_sft_processed:train",
    hub_test=None,
    shapes=(
        Shape(
            tuple(f"extra_info.{name}" for name in ("question", "answer_raw", *_NAMES, "answer_thinking")),
            _convert,
        ),
        Shape(
            ("prompt", "distilled_answer_string", *_NAMES, "reasoning"), _convert
        ),  # UCSC-VLAA/m23k-tokenized
    ),
    generate=generate,
    generator="stand-in: questions on ICD-10-CM's chapters and blocks",
    instruction=_INSTRUCTION,
)
