r"""Mathematical problems with worked solutions, scored on the paper's five benchmarks.

A row to train on, of the generator's:
    question  A child has 19 books. His friend has 5 fewer books than he has. How many books do they have
              together? Give the result as your final answer. Do not include units.
    response  His friend has 19 - 5 = 14 books.
              Together, they have 19 + 14 = 33 books.
              The answer is \boxed{33}.
    truth     33
A generation is right if the answer that it states equals the truth as mathematics: 33, 33.0 or \frac{66}{2}.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from megatron_probsft.data.text.named_templates import (
    BOXED,
    LLAMA_BOXED,
    QWEN_BOXED,
    NamedTemplate,
    chatml,
    deepseek,
)
from megatron_probsft.domains.benchmarks.loading import Question
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.domain import Converted, Domain, Experiment, Generated, Generator, Shape
from megatron_probsft.grading.grade import Grade

QWEN_COT = NamedTemplate.of(chatml(BOXED, ""))
DEEPSEEK_BOXED = NamedTemplate.of(deepseek("", f"\n{BOXED}"))


# Imports inside functions: every command reads this file for its names, and few need more of it.


def _generate(train: int | None, test: int | None, seed: int) -> Generated:
    from megatron_probsft.domains.generators import gsm_symbolic

    return gsm_symbolic.generate(train, test, seed)


def _convert(question: str, solution: str) -> Converted:
    from megatron_probsft.grading.boxed import boxed

    if not question.strip() or not solution.strip():
        return "empty question or answer"
    truth = boxed(solution)
    return "no \\boxed{…} in the solution" if truth is None else (question, solution, truth, {})


def _read_row(row: dict[str, Any], where: str) -> Question:
    from megatron_probsft.domains.benchmarks.math_layouts import read_row

    own_id, question, answer = read_row(row, where)
    return Question(question, answer.text, own_id or None, {"math_answer": answer})


def _grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    from megatron_probsft.grading.mathematics.judge import judge_math

    return judge_math(texts, [problem.details["math_answer"] for problem in problems])


def _majority_key(grade: Grade) -> Hashable | None:
    """0.5 and 1/2 are one answer; of other expressions those that are written alike."""
    from megatron_probsft.grading.mathematics.answers import normalise
    from megatron_probsft.grading.quantities.numbers import exact_value

    if grade.prediction is None:
        return None
    text = normalise(grade.prediction)
    value = exact_value(text)
    return text if value is None else value


DOMAIN = Domain(
    name="math",
    version=1,
    place=1,
    # Prompts
    templates={
        "qwen-boxed": QWEN_BOXED,
        "qwen25-math-cot": QWEN_COT,  # the chat template of Qwen2.5-Math
        "llama-base-boxed-with-bos": LLAMA_BOXED,
        "deepseek-math": DEEPSEEK_BOXED,
        # The paper's Qwen2.5-Math trains on its chat template and is evaluated with another.
        "qwen-math-paper": NamedTemplate(QWEN_COT.trained, QWEN_BOXED.generated),
        "llama-math-paper": NamedTemplate(
            LLAMA_BOXED.trained, LLAMA_BOXED.generated, tokenizer_adds_bos=True
        ),
        "deepseek-math-paper": NamedTemplate(
            DEEPSEEK_BOXED.trained, DEEPSEEK_BOXED.generated, tokenizer_adds_bos=True
        ),
    },
    prompts={"chatml": "qwen-boxed", "llama": "llama-base-boxed-with-bos", "deepseek": "deepseek-math"},
    paper_prompts={
        "chatml": "qwen-math-paper", "llama": "llama-math-paper", "deepseek": "deepseek-math-paper",
    },
    # Data to train on
    hub_train="gaotang/numina-cot-subset-67k:train",
    shapes=(
        Shape(("extra_info.question", "extra_info.answer"), _convert),
        Shape(("question", "answer"), _convert),
        Shape(("problem", "solution"), _convert),  # AI-MO/NuminaMath-CoT
    ),
    instruction=" Let's think step by step and output the final answer within \\boxed{}.",
    generator=Generator(generate=_generate, what="stand-in: reasoning-gym's gsm_symbolic word problems"),
    # Evaluation, sampled as in the paper
    benchmarks={
        "math_oai": "HuggingFaceH4/MATH-500:test",
        "minerva_math": "math-ai/minervamath:test",
        "olympiadbench": "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train",
        "aime24": "HuggingFaceH4/aime_2024:train",
        "amc23": "math-ai/amc23:test",
    },
    columns=(
        "extra_info.question or problem or question; reward_model.ground_truth or final_answer or answer or "
        "solution, with the answer in its last \\boxed{}; an id, unique_id or idx if there is one"
    ),
    read_row=_read_row,
    grade=_grade,
    majority_key=_majority_key,
    samples=16,
    temperature=1.0,
    max_new_tokens=4096,
    # Experiments, as in the paper and in small
    experiment=Experiment(
        seq_length=3072, micro_batch_size=1, weight_decay=0.01, paper_micro_batch_size=4,
        small_seq_length=1024, small_max_new_tokens=160,
    ),
)  # fmt: skip
