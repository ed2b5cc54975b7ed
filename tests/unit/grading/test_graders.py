"""Graders: what counts as equal, what is refused, and that hostile expressions cost a bounded time."""

from __future__ import annotations

import time

import pytest

from megatron_probsft.grading.choices import chosen
from megatron_probsft.grading.graders import get_grader
from megatron_probsft.grading.mathematics import judge as math_judge
from megatron_probsft.grading.mathematics.answers import MathAnswer, decide
from megatron_probsft.grading.mathematics.found import stated
from megatron_probsft.runtime.errors import UserError


def verdicts(name: str, generations: list[str], answer: str) -> list[str]:
    count = len(generations)
    return [one.verdict for one in get_grader(name)(generations, [answer] * count, ["line 1"] * count)]


@pytest.mark.parametrize(
    ("name", "generation", "answer", "verdict"),
    [
        ("exact", " Paris\n", "Paris", "correct"),
        ("exact", "paris", "Paris", "wrong"),
        ("exact", "", "", "correct"),
        ("number", "25 + 49 = 74", "74", "correct"),
        ("number", "It is 1,234,567.0.", "1234567", "correct"),
        ("number", "1234567", "1,234,567.00", "correct"),
        ("number", "1,2345", "2345", "correct"),  # no thousands separator: two numbers
        ("number", "x = -5", "-5", "correct"),
        ("number", "x = −5", "-5", "correct"),
        ("number", "12-5", "5", "correct"),
        ("number", "12-5", "-5", "wrong"),
        ("number", "$-0.50", "-.5", "correct"),
        ("number", "about 3e2 of them", "300", "correct"),
        ("number", "74 and then 75", "74", "wrong"),
        ("number", "0.30000000000000004", "0.3", "wrong"),
        ("number", "no idea", "0", "unparsable"),
        ("number", "9" * 5000, "9", "wrong"),
        ("math", r"so the answer is \boxed{\frac{1}{2}}", "0.5", "correct"),
        ("math", r"\frac{2}{4}", r"\frac{1}{2}", "correct"),
        ("math", "The result is $x(x+1)$.", "x^2+x", "correct"),
        ("math", "x+1", "1", "wrong"),
        ("math", r"\boxed{(1,2)}", "(1,2)", "correct"),
        ("math", "(1,2)", "(1,2)", "correct"),
        ("math", "I do not know", "7", "wrong"),
        ("math", "", "7", "unparsable"),
        ("math", "line\n\\boxed{7}\x00\u2028end", "$7$", "correct"),
    ],
)
def test_grades(name: str, generation: str, answer: str, verdict: str) -> None:
    assert verdicts(name, [generation], answer) == [verdict]


@pytest.mark.parametrize(
    ("generation", "answer", "right"),
    [
        ("The answer is 74. Let me check: 25 + 49 = 73, hmm 2 ways.", "74", True),
        ("**74**", "74", True),
        ("The answer is **1,234**.", "1234", True),
        ("So \\boxed{74} (see step 3)", "74", True),
        ("#### 74", "74", True),
        ("blah 3\n#### 1,234\n", "1234", True),
        ("The answer is 1/2", "2", False),
        ("The answer is 1/2", "0.5", True),
        ("\\frac{3}{4}", "4", False),
        ("It is \\frac{3}{4}.", "0.75", True),
        ("It is 3/4", "0.75", True),
        ("It is 3/4", "4", False),
        ("The answer is 50%", "50", True),
        ("Total: $1,234.50", "1234.5", True),
        ("It costs -$5", "-5", True),
        ("It costs -$5", "5", False),
        ("It is 10 000.", "10000", False),
        ("It is 10\u202f000.", "10000", True),
        ("１２", "12", True),
        ("The answer is 5 or 7.", "7", False),
        ("The answer is 5 or 7.", "5", False),
        ("<think>74</think>The answer is 75", "74", False),
        ("<think>The answer is 73</think>The answer is 74", "74", True),
        ("Answer: 25 + 49 = 74", "74", True),
        ("Answer: 74 apples (2 bags of 37)", "74", True),
        ("The answer is -3.", "-3", True),
        ("The answer is 3 cm", "3", True),
        ("The answer is x = 5", "5", True),
        ("Answer: 1e3", "1000", True),
        ("Answer: $1.5\\times10^3$", "1500", True),
        ("12<|im_end|>\n<|im_start|>user 13", "12", True),
        ("The final answer is 1{,}234", "1234", True),
        ("the result: 12.0", "12", True),
        ("12.", "12", True),
        ("Step 1. 3+4\nStep 2. 7", "7", True),
        ("The answer is unknown: 7", "7", True),
        ("- 12", "12", True),
        ("- 12", "-12", False),
        ("x_1 = 5", "5", True),
        ("2^{10}", "10", False),
        ("7 (seven)", "7", True),
        ("The answer is three", "3", False),
        ("1/3", "0.333333", False),
        ("It lies in 3-5", "5", True),
        ("The answer is 3 1/2", "3.5", True),
        ("The answer is 3 1/2", "2", False),
        ("half of 10 is 5", "5", True),
        ("**Answer:** 5 km/h", "5", True),
        ("\\boxed{5\\text{ m}}", "5", True),
        ("\\boxed{x=5}", "5", True),
        ("\\boxed{3, 5}", "5", False),
        ("$12$", "12", True),
        ("2023-05-06: 12", "12", True),
    ],
)
def test_stated_numbers(generation: str, answer: str, right: bool) -> None:
    assert (verdicts("number", [generation], answer) == ["correct"]) is right


def test_exact_text_begins_behind_the_thoughts() -> None:
    texts = ["<think>London?</think>\nParis", "Paris<|im_end|>\n", "<think>Paris", "Paris."]
    assert verdicts("exact", texts, "Paris") == ["correct", "correct", "wrong", "wrong"]


@pytest.mark.parametrize("grader", ["number", "math", "choice"])
def test_hostile_text_is_read_in_a_bounded_time(grader: str) -> None:
    hostile = [
        "*" * 200_000, "*a " * 100_000, "$a " * 100_000, "`" * 200_000, "_a" * 100_000, "<b>" * 60_000,
        "<think>" * 50_000, "the answer is " * 30_000, "Final answer: " * 40_000, "answer: x " * 40_000,
        "\n" * 300_000 + "x", "#" * 300_000, "# a\n" * 100_000, "```\n" * 100_000, "\\" * 300_000,
        "\\boxed{1}, " * 50_000, "<answer>" * 50_000, "9" * 1_000_000,
        *(f"\\boxed{{{text}}}" for text in ("sqrt(" * 390, "(" * 990 + ")" * 990, "{" * 900 + "}" * 900,
          "1," * 950, "x<" * 900 + "1", "x=" * 900 + "1", "5" + " m" * 900, "½" * 1900, "√" * 1900,
          "(0,1)\\cup" * 190 + "(0,1)", "\\pm 1," * 250, "1:" * 900 + "1", "1" * 1900 + "_8")),
    ]  # fmt: skip
    started = time.process_time()
    for text in hostile:
        if grader == "choice":
            chosen(text, {"A": "one", "B": "two"})
        elif grader == "number":
            verdicts("number", [text], "7")
        else:
            found = stated(text, several=True)
            if found is not None:
                decide(found, MathAnswer.of("1, 2"))
    assert time.process_time() - started < 20


@pytest.mark.size("test")
def test_hostile_text_is_not_right_and_the_next_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_judge, "MATH_SECONDS", 2.0)
    hostile = [
        "$" + "{" * 2000 + "1" + "}" * 2000 + "$",
        "\\boxed{" * 100_000,
        "1+" * 1_000_000,
        "\\boxed{" + "9" * 1_000_000 + "}",
        "\\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
        r"\boxed{(10^{9})!}",
        r"\boxed{\prod_{k=1}^{100000000} k}",
    ]
    started = time.monotonic()
    got = verdicts("math", [*hostile, r"\boxed{\frac{14}{2}+x-x}"], "7")
    assert time.monotonic() - started < 120
    assert "correct" not in got[:-1]
    assert got[-1] == "correct"


def test_a_runaway_computation_is_ended_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_judge, "MATH_SECONDS", 1.0)
    started = time.monotonic()
    got = verdicts("math", [r"\boxed{9^{9^{9^{9^9}}}}", r"\boxed{x-x+7}"], "7")
    assert time.monotonic() - started < 60
    assert got == ["timeout", "correct"]


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [("number", "seven", "line 1: the answer 'seven' is not a number"), ("math", "", "the answer is empty")],
)
def test_unusable_answers_are_refused(name: str, answer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        verdicts(name, ["7"], answer)


def test_unknown_graders_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^--grader exakt is unknown: did you mean exact\?$"):
        get_grader("exakt")
    with pytest.raises(UserError, match=r"use one of exact, number, math$"):
        get_grader("zzz")
