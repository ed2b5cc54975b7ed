"""Which option a generation chooses, case by case, and the layouts of multiple-choice files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.grading.choices import chosen
from megatron_probsft.runtime.errors import UserError

OPTIONS = {"A": "Aspirin", "B": "Beta blocker", "C": "Cortisone", "D": "High-dose aspirin", "E": "Iron"}


@pytest.mark.parametrize(
    ("generation", "letter"),
    [
        (r"A is wrong. So \boxed{B}.", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{B. Beta blocker}", "B"),
        (r"\boxed{\text{Beta blocker}}", "B"),
        (r"\boxed{high-dose aspirin}", "D"),
        (r"\boxed{Option C}", "C"),
        (r"\boxed{\text{Answer: B}}", "B"),
        (r"\boxed{A} is what some say, but \boxed{C}", "C"),
        (r"The answer is A. Yet \boxed{D} it is.", "D"),  # a box goes before a statement
        (r"\boxed{42}, but the answer is B", "B"),
        ("The answer is B", "B"),
        ("the answer is: (C).", "C"),
        ("Answer: **D**", "D"),
        ("The correct option is E because iron is low.", "E"),
        ("The answer is A? No, the answer is B.", "B"),
        ("the answer is Cortisone.", "C"),
        ("The answer is the following: Beta blocker", "B"),
        ("The best answer is a beta blocker", "B"),  # "a" is no letter
        ("The answer is A", "A"),
        ("The answer is A.", "A"),
        ("The answer is A because aspirin thins blood, unlike cortisone.", "A"),
        ("Answer: A high dose", None),
        ("Reasoning.\n\n(C) Cortisone", "C"),
        ("Reasoning.\nD", "D"),
        ("B. Beta blocker", "B"),
        ("A. no\nB. no\nC) yes", "C"),
        ("Give high-dose aspirin", "D"),
        ("Cortisone fails, so aspirin", "A"),
        ("Ironing", None),
        ("I think that nothing fits", None),
        ("The answer is F", None),
        ("", None),
    ],
)
def test_choices(generation: str, letter: str | None) -> None:
    assert chosen(generation, OPTIONS) == letter


@pytest.mark.parametrize(
    ("generation", "letter"),
    [
        ("(B)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("Option B", "B"),
        ("the answer is b", "B"),
        ("The answer is b.", "B"),
        ("The answer is: B) Beta blocker", "B"),
        ("Answer: b", "B"),
        ("\\boxed{\\textbf{(B)}}", "B"),
        ("The correct choice would be (D)", "D"),
        ("I choose C", "C"),
        ("I would go with C.", "C"),
        ("C is correct.", "C"),
        ("C is the correct answer", "C"),
        ("Option C is the best choice.", "C"),
        ("A is incorrect. B is not right. So C is right.", "C"),
        ("**Answer:** **C**", "C"),
        ("**Answer**: C", "C"),
        ("## Answer\nC", "C"),
        ("Answer\n\nC", "C"),
        ("Answer - C", "C"),
        ("Final answer: C", "C"),
        ("The answer is A or B.", None),
        ("The answer is A and C", None),
        ("\\boxed{A, B}", None),
        ("\\boxed{A \\text{ or } B}", None),
        ("<think>The answer is A.</think>The answer is C.", "C"),
        ("<think>B</think>\n\nC", "C"),
        ("<answer>C</answer>", "C"),
        ("<answer>\nThe answer is (C)\n</answer>", "C"),
        ("The best answer among the options is **D**.", "D"),
        ("The answer to this question is C.", "C"),
        ("The answer is definitely B", "B"),
        ("The answer is B, not C.", "B"),
        ("The answer is B. C is wrong.", "B"),
        ("The answer is $C$.", "C"),
        ("The answer is $\\mathbf{C}$.", "C"),
        ("The answer is \\text{C}.", "C"),
        ("A. Aspirin\nB. Beta blocker\nC. Cortisone\nD. High-dose aspirin\nE. Iron", None),
        (
            "A. Aspirin\nB. Beta blocker\nC. Cortisone\nD. High-dose aspirin\nE. Iron\nSo cortisone it is.",
            "C",
        ),
        ("A. Aspirin\nB. Beta blocker\nC. Cortisone\nD. High-dose aspirin\nE. Iron\n\nAnswer: D", "D"),
        ("The answer is a", "A"),
        ("The answer is a beta blocker", "B"),
        ("answer: (a)", "A"),
        ("The answer is E: Iron", "E"),
        ("answer is cortisone because", "C"),
        ("CORTISONE", "C"),
        ("The answer is **Cortisone**.", "C"),
        ("B) Beta blocker", "B"),
        ("`B`", "B"),
        ("The answer is `B`.", "B"),
        ("Therefore, the most appropriate option is (E).", "E"),
        ("I think A is best for pain, but the answer is D", "D"),
        ("The answer is D<|im_end|>\n<|im_start|>user\nThe answer is A", "D"),
        ("the answer is not B", None),
        ("The answer is none of the above", None),
        ("the answer is neither A nor B", None),
        ("A", "A"),
        ("I", None),
        ("Answer: A high dose", None),
        ("The answer is AB", None),
        ("The correct answer is option (C): Cortisone", "C"),
        ("The answer is (C) Cortisone, because (A) is wrong.", "C"),
        ("Answer: [B]", "B"),
        ("Answer: {B}", "B"),
        ("Answer is C!", "C"),
        ("Correct answer: C", "C"),
        ("C: Cortisone", "C"),
    ],
)
def test_ways_of_choosing(generation: str, letter: str | None) -> None:
    assert chosen(generation, OPTIONS) == letter


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Any], list[Problem]]:
    def from_file(rows: Any) -> list[Problem]:
        (tmp_path / "eval.json").write_text(json.dumps(rows))
        return get_domain("medical").load([str(tmp_path)], None)

    return from_file


Load = Callable[[Any], list[Problem]]


def test_grades(load: Load) -> None:
    problems = load([{"prompt": "q", "options": OPTIONS, "answer_idx": "B"}])
    verdicts = [get_domain("medical").grade(problems, [text])[0] for text in ("B", "C", "no idea")]
    assert [(one.prediction, one.verdict) for one in verdicts] == [
        ("B", "correct"), ("C", "wrong"), (None, "unparsable"),
    ]  # fmt: skip


def test_sources_are_benchmarks(load: Load) -> None:
    one = {"prompt": "q", "options": OPTIONS, "answer_idx": "B"}
    flat = load([{**one, "source": "MedQA"}, {**one, "source": "MedMCQA"}, {**one, "source": "MedQA"}])
    by_source = load({"MedQA": [one, one], "MedMCQA": [one]})
    assert [(p.benchmark, p.id) for p in flat] == [("MedQA", "0"), ("MedMCQA", "0"), ("MedQA", "1")]
    assert [p.id for p in load([{**one, "id": None}, {**one, "id": "x"}])] == ["0", "x"]
    assert sorted((p.benchmark, p.id) for p in by_source) == sorted((p.benchmark, p.id) for p in flat)


def test_a_question_is_shown_with_its_options(load: Load) -> None:
    [problem] = load([{"question": "Which?", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}])
    assert problem.prompt == "Which?\nA. x\nB. y"
    assert problem.benchmark == "eval"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "answer_idx": "A"}, "entry 1: no options"),
        ({"options": OPTIONS, "answer_idx": "A"}, "entry 1: no question"),
        ({"prompt": "q", "options": OPTIONS, "answer_idx": "F"}, "the answer 'F' is none of the options A"),
        ({"prompt": "q", "options": {"1": "x"}, "answer_idx": "1"}, "named by capital letters, got 1"),
        ("text", "entry 1: is of type str"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(load: Load, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load([row])
