"""Graders: what counts as equal, what is refused, and that hostile expressions cost a bounded time."""

from __future__ import annotations

import time

import pytest

from megatron_probsft.evaluation import math_judge
from megatron_probsft.evaluation.graders import get_grader
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
