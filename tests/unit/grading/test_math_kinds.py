"""Mathematical answers kind by kind: the pairs of a generation and a reference in tests/data, all judged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.grading.boxed import boxes
from megatron_probsft.grading.markdown import without_markdown
from megatron_probsft.grading.mathematics.answers import MathAnswer, decide
from megatron_probsft.grading.mathematics.found import stated
from megatron_probsft.grading.mathematics.judge import judge_math
from megatron_probsft.grading.mathematics.notation import canonical
from megatron_probsft.grading.mathematics.sets import Interval, real_set
from megatron_probsft.grading.mathematics.shapes import items
from megatron_probsft.grading.quantities.bases import based, time_of_day
from megatron_probsft.grading.quantities.numbers import equal_numbers
from megatron_probsft.grading.quantities.units import quantity

DATA = Path(__file__).parents[2] / "data"


def _pairs(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


PAIRS = {"reported": _pairs("math_pairs.jsonl"), "own": _pairs("math_kinds.jsonl")}
KINDS = [
    (name, kind) for name, pairs in PAIRS.items() for kind in dict.fromkeys(one["kind"] for one in pairs)
]


@pytest.fixture(scope="module")
def misjudged() -> dict[tuple[str, str], list[str]]:
    """Wrong verdicts by file and kind."""
    everything = [(name, one) for name, pairs in PAIRS.items() for one in pairs]
    grades = judge_math(
        [one["generation"] for _, one in everything],
        [MathAnswer.of(one["reference"]) for _, one in everything],
    )
    wrong: dict[tuple[str, str], list[str]] = {}
    for (name, one), grade in zip(everything, grades, strict=True):
        if grade.correct != one["correct"]:
            text = f"{one['generation']} for {one['reference']}: {grade.verdict} ({grade.prediction})"
            wrong.setdefault((name, one["kind"]), []).append(text)
    return wrong


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_pair_is_judged_as_it_is(
    name: str, kind: str, misjudged: dict[tuple[str, str], list[str]]
) -> None:
    assert misjudged.get((name, kind), []) == []


def test_there_are_right_and_wrong_pairs_of_each_kind() -> None:
    assert len(PAIRS["reported"]) == 110
    counts = Counter((one["kind"], one["correct"]) for one in PAIRS["own"])
    always_right = {"statements", "thoughts"}  # a wrong one stands among the others
    assert [kind for kind, _ in counts if not counts[kind, False] and kind not in always_right] == []
    assert min(counts[kind, True] for kind, _ in counts) >= 4


def test_an_answer_equals_itself() -> None:
    """Whatever the reference, as text alone tells."""
    for one in (pair for pairs in PAIRS.values() for pair in pairs):
        assert decide(one["reference"], MathAnswer.of(one["reference"])) is True, one["reference"]


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("**x = 12**", "x = 12"),
        ("**`12`**", "12"),
        ("__12__ and *a*", "12 and a"),
        ("## Answer ##\n> 12", "Answer\n12"),
        ("**Answer: 12", "Answer: 12"),
        ("<b>12</b>, x<sup>2</sup>", "12, x^{2}"),
        ("2*3*4, 2 ** 3, a**b, x_1 + y_1, f^*(x)*g^*(x)", "2*3*4, 2 ** 3, a**b, x_1 + y_1, f^*(x)*g^*(x)"),
        ("(a)_{8} and (b)_{8}, a<b and c>b", "(a)_{8} and (b)_{8}, a<b and c>b"),
        ("```\n12\n```", "\n12\n"),
    ],
)
def test_markdown_is_dropped_and_mathematics_kept(text: str, without: str) -> None:
    assert without_markdown(text) == without


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("3½", r"3\frac{1}{2}"),
        ("−√2·x²", r"-\sqrt{2}\cdot x^{2}"),
        ("2 pi/3", r"2 \pi /3"),
        ("x**2 <= 10⁻³", r"x^2 \le 10^{-3}"),
        (r"\dfrac12\;\text{cm}", r"\frac{1}{2} \text{cm}"),
        (r"1{,}\!234", "1234"),
        (r"1,\;234", "1, 234"),
        ("5 6", "5␣6"),
        (r"\left(\frac 59,\;１２\right]", r"(\frac{5}{9}, 12]"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_one_notation(text: str, notation: str) -> None:
    assert canonical(text) == notation


def test_what_stands_beside_a_number() -> None:
    value, unit = quantity(canonical(r"300\mathrm{~km}/\mathrm{h}"))
    assert value == "300"
    assert unit
    assert (unit.scale, dict(unit.powers)) == (pytest.approx(1 / 3.6), {"m": 1, "s": -1})
    value, unit = quantity(canonical(r"\$2.5 million"))
    assert unit
    assert (value, unit.scale, dict(unit.powers)) == ("2.5", 1_000_000, {"dollar": 1})
    assert quantity("5x") == ("5x", None)
    assert quantity("x^2") == ("x^2", None)
    assert based("2516_{8}") == ("2516", 8)
    assert based("2516_4") is None  # 5 and 6 are no digits there
    assert time_of_day(r"11:30 \text{p.m.}") == (11, 30, 0, "p")
    assert time_of_day("3:75") is None


def test_lists_and_sets() -> None:
    assert items(r"1, 2 \text{ and } 3") == ["1", "2", "3"]
    assert items("1,234, 5,678") == ["1,234", "5,678"]
    assert items(r"1 \pm 2") == ["1 + 2", "1 - 2"]
    assert items("(1,2);(3,4)") == ["(1,2)", "(3,4)"]
    assert real_set(canonical("0 < x ≤ 1")) == ("x", Interval(("0", "1"), (False, True)))
    assert real_set("(1, 2, 3)") is None


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        ("0.333333", "1/3", True), ("0.33333", "1/3", False), ("0.6666666", r"\frac{2}{3}", True),
        ("0.30000000000000004", "0.3", True), ("0.3000001", "0.3", False), ("12.345678", "12.345679", False),
        ("12.345678", "12.3456781", True), ("1000000.5", "1000000", False), ("x", "1", None),
        (r"0.\overline{3}", "1/3", True), (r"3\frac{1}{2}", "3.5", True), ("1e-400", "0", False),
    ],
)  # fmt: skip
def test_numbers(one: str, two: str, equal: bool | None) -> None:
    assert equal_numbers(one, two) is equal
    assert equal_numbers(two, one) is equal


@pytest.mark.parametrize(
    ("generation", "several", "answer"),
    [
        (r"<think>\boxed{9}</think> The answer is 4", False, "4"),
        (r"\boxed{1} and $\boxed{2}$", False, "1, 2"),
        (r"\boxed{1}. We go on. \boxed{2}", False, "2"),
        (r"\boxed{1}. We go on. \boxed{2}", True, "1, 2"),
        (r"\boxed{1}. All in all \boxed{2, 3}", True, "2, 3"),
        (r"\boxed{2.0} = \boxed{2}", False, "2"),
        (r"$x = \boxed{3}$ and $y = \boxed{4}$", False, "x = 3, y = 4"),
        (r"$\boxed{5}$ km.", False, "5 km"),
        (r"$\boxed{2516}_8$", False, "2516_8"),
        (r"$\boxed{5}$ and that is all", False, "5"),
        ("**Final answer: 1,234**", False, "1,234"),
        ("The final answer is $\\frac{3}{4}$. I hope it is correct.", False, "\\frac{3}{4}"),
        ("Final Answer: The largest $n$ is 34.", False, "34"),
        ("So x = 12.", False, None),
        ("The answer is 4.<|im_end|>\n<|im_start|>user\nThe answer is 5.", False, "4"),
    ],
)
def test_what_a_generation_states(generation: str, several: bool, answer: str | None) -> None:
    assert stated(generation, several=several) == answer


def test_boxes() -> None:
    found = boxes(r"\boxed{1}, \fbox{\frac{1}{2}}, \boxed{\boxed{3}}, \boxed{cut")
    assert [one.inside for one in found] == ["1", r"\frac{1}{2}", "3"]
    assert (found[0].start, found[0].end) == (0, 9)
