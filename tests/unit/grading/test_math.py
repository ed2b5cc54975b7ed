"""Mathematical answers: what is equal, the public layouts, and the paper's five benchmarks as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.domains.benchmarks.math_layouts import read_row
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.grading.boxed import boxed
from megatron_probsft.grading.mathematics.answers import MathAnswer, decide, normalise, parts
from megatron_probsft.grading.mathematics.judge import judge_math
from megatron_probsft.runtime.errors import UserError

BENCHMARKS = Path(__file__).parents[4] / "shared" / "data" / "math"
COUNTS = {"aime24": 30, "amc23": 40, "math_oai": 500, "minerva_math": 272, "olympiadbench": 675}

# Neighbours' answers that are right: "x=5" for the answer 5. There is no other exception, nor any among the
# benchmarks' own answers.
RIGHT_NEIGHBOURS = {("math_oai", "test/algebra/1837.json")}


@pytest.fixture(scope="module")
def benchmarks() -> list[Problem]:
    if not BENCHMARKS.is_dir():
        pytest.skip(f"{BENCHMARKS} is not there: the benchmarks stand beside the checkout, not in it")
    return get_domain("math").load([str(BENCHMARKS)], None)


def grade(problems: Sequence[Problem], answers: Sequence[str]) -> list[str]:
    texts = [f"First we add, then we get\n\\[ \\boxed{{{answer}}} \\]" for answer in answers]
    return [one.verdict for one in get_domain("math").grade(problems, texts)]


def test_own_answers_of_the_benchmarks_are_right(benchmarks: list[Problem]) -> None:
    counts = {name: sum(one.benchmark == name for one in benchmarks) for name in COUNTS}
    assert counts == COUNTS
    verdicts = grade(benchmarks, [one.answer for one in benchmarks])
    assert [one.id for one, verdict in zip(benchmarks, verdicts, strict=True) if verdict != "correct"] == []


@pytest.mark.size("test")
def test_neighbours_answers_are_wrong(benchmarks: list[Problem]) -> None:
    pairs = [
        (one, other.answer)
        for one, other in zip(benchmarks, [*benchmarks[1:], benchmarks[0]], strict=True)
        if one.benchmark == other.benchmark and normalise(one.answer) != normalise(other.answer)
    ]
    assert len(pairs) > 1480
    verdicts = grade([one for one, _ in pairs], [answer for _, answer in pairs])
    not_wrong = {
        (one.benchmark, one.id, verdict)
        for (one, _), verdict in zip(pairs, verdicts, strict=True)
        if verdict in ("correct", "unparsable")
    }
    assert not_wrong == {(*key, "correct") for key in RIGHT_NEIGHBOURS}


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        (r"\frac12", "0.5", True),
        (r"\dfrac{1}{2}", "1/2", True),
        ("0.333333", r"\frac{1}{3}", True),
        ("0.33", r"\frac{1}{3}", False),
        (r"4.5 \times 10^{33}", "4.5e33", True),
        (r"4.6 \times 10^{33}", "4.5e33", False),
        (r"2 \times 10^{-11}", "1e-11", False),  # both are 0 at math-verify's six decimal places
        (r"0.00000000001", "1e-11", True),
        ("1000001", "1000000", False),
        ("58500", "58,500", True),
        (r"\$32,\!348", "32348", True),
        ("32349", r"\$32,\!348", False),
        (r"\text{Evelyn}", "Evelyn", True),
        ("evelyn", r"\text{Evelyn}", True),
        (r"\text{Carla}", r"\text{Evelyn}", False),
        ("C", r"\text{(C)}", True),
        ("D", r"\text{(C)}", False),
        ("60^\\circ", "60", True),
        ("x = 5", "5", True),
        ("y+1", "x+1", False),
        (r"(x+1)^2", "x^2+2x+1", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(2, 1)", "(1, 2)", False),
        ("[1, 2]", "(1, 2)", False),
        (r"(-\infty, 3] \cup [5, \infty)", r"(-\infty,3]\cup[5,\infty)", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}", True),
        ("5, 3 \\text{ and } 7", "3, 5, 7", True),
        ("3, 5", "3, 5, 7", False),
        ("3, 5, 7, 9", "3, 5, 7", False),
        (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}", True),
        (r"1-\sqrt{19}", r"1 \pm \sqrt{19}", False),
        (r"\{-2, 1-\sqrt5, 1+\sqrt5\}", r"\{1\pm\sqrt{5},-2\}", True),
        ("5 6", "56", False),
        ("10 000", "10000", True),
    ],
)
def test_equal_answers(found: str, answer: str, right: bool) -> None:
    [one] = judge_math([f"so \\boxed{{{found}}}"], [MathAnswer.of(answer)])
    assert one.verdict == ("correct" if right else "wrong")
    assert one.prediction == found


@pytest.mark.parametrize(
    ("found", "fields", "right"),
    [
        (r"84, 69", {"text": "$69$,$84$", "several": True}, True),
        (r"84", {"text": "$69$,$84$", "several": True}, False),
        (r"\{100, 200\}", {"text": "100,200", "several": True}, True),
        (r"100200", {"text": "100,200", "several": True}, False),
        ("(3,2), (1,1)", {"text": "$(1,1), (3,2)$", "several": True}, True),
        ("(2,3), (1,1)", {"text": "$(1,1), (3,2)$", "several": True}, False),
        ("4.25", {"text": "4.2", "tolerance": 0.1, "unit": "%"}, True),
        (r"4.25\%", {"text": "4.2", "tolerance": 0.1, "unit": "%"}, True),
        ("4.35", {"text": "4.2", "tolerance": 0.1, "unit": "%"}, False),
        ("8 \\text{ minutes}", {"text": "8", "unit": "minutes"}, True),
        ("30 \\mathrm{~cm^2}", {"text": "30", "unit": "$cm^2$"}, True),
    ],
)
def test_several_answers_tolerance_and_units(found: str, fields: dict[str, Any], right: bool) -> None:
    [one] = judge_math([f"\\boxed{{{found}}}"], [MathAnswer(**fields)])
    assert one.verdict == ("correct" if right else "wrong")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{", None), ("none", None), ("\\boxed{}", ""), ("\\boxed{a{b}", None),
    ],
)  # fmt: skip
def test_the_last_box(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


def test_which_text_is_judged() -> None:
    assert boxed(r"\boxed{1}, no: \boxed{\frac{1}{2}}, and \boxed{cut off") == r"\frac{1}{2}"
    assert boxed(r"\framebox{204} minutes") == "204"
    assert boxed(r"\boxed{} and \boxed{a{b}") == ""
    assert boxed("no box") is None
    texts = ["so $x = 12$. The final answer is $13$.", "I do not know why.", "", r"\boxed{}", "it is 5 or 7"]
    grades = judge_math(texts, [MathAnswer("13")] * 5)
    assert [one.verdict for one in grades] == ["correct", "wrong", "unparsable", "unparsable", "wrong"]
    assert grades[0].prediction == "13"
    assert grades[2].prediction is None


def test_parts() -> None:
    assert parts("1,234", several=False) == ["1,234"]
    assert parts("1,234", several=True) == ["1", "234"]
    assert parts("(1, 2), [3, 4]", several=False) == ["(1, 2)", "[3, 4]"]
    assert decide("7", MathAnswer("x+7")) is None  # for algebra


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "p", "solution": r"\boxed{1.6} cm", "idx": 0}, MathAnswer("1.6")),
        ({"problem": "p", "answer": 27.0, "id": 3}, MathAnswer("27")),
        ({"problem": "p", "solution": "s", "answer": "025"}, MathAnswer("025")),
        ({"question": "p", "answer": "6 + 7 = <<6+7=13>>13\n#### 1,013"}, MathAnswer("1,013")),
        (
            {"question": "p", "final_answer": ["4.2"], "unit": "%", "error": "1e-1"},
            MathAnswer("4.2", False, 0.1, "%"),
        ),
        ({"question": "p", "final_answer": ["1,3"], "is_multiple_answer": True}, MathAnswer("1,3", True)),
        (
            {"prompt": [], "extra_info": {"question": "p"}, "reward_model": {"ground_truth": "36"}},
            MathAnswer("36"),
        ),
    ],
)  # fmt: skip
def test_layouts(row: dict[str, Any], answer: MathAnswer) -> None:
    assert read_row(row, "file row 1")[1:] == ("p", answer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "p"}, r"no question \(problem, question or extra_info.question\); it has: text"),
        ({"problem": 3, "answer": "1"}, "problem must be text, got 3"),
        ({"problem": "p"}, "no answer"),
        ({"problem": "p", "solution": "none"}, r"the solution holds no \\boxed"),
        ({"problem": "p", "answer": " "}, "the answer is empty"),
        ({"problem": "p", "answer": ["1"]}, "answer must be text or a number, got list"),
        ({"question": "p", "answer": "so ####"}, "nothing follows ####"),
        ({"question": "p", "final_answer": "1"}, 'final_answer must be a list of texts, got "1"'),
        ({"question": "p", "final_answer": ["1"], "error": "wide"}, "error must be a number, got 'wide'"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"mine.jsonl row 2: {message}") as caught:
        get_domain("math").load([str(file)], None)
    assert "\n" not in str(caught.value)


def test_folders_and_benchmarks_by_name(tmp_path: Path) -> None:
    for name, folder in (("a", tmp_path), ("test", tmp_path / "b"), ("test", tmp_path / "c")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text(json.dumps({"problem": f"of {name}", "answer": "1"}) + "\n")
    load = get_domain("math").load
    assert [one.benchmark for one in load([str(tmp_path)], None)] == ["a"]
    (tmp_path / "a.jsonl").unlink()
    assert [one.benchmark for one in load([str(tmp_path)], None)] == ["b", "c"]
    assert [one.benchmark for one in load([str(tmp_path)], ["c"])] == ["c"]
    with pytest.raises(UserError, match=r"^--benchmarks d is none of: b, c$"):
        load([str(tmp_path)], ["d"])
    with pytest.raises(UserError, match="no such file or folder"):
        load([str(tmp_path / "absent")], None)


def test_without_data_and_hub_the_flag_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("megatron_probsft.data.sources.readers._load_from_hub", refused)
    message = r"^--task math without --data reads HuggingFaceH4/MATH-500:test from the hub: name local files"
    with pytest.raises(UserError, match=message):
        get_domain("math").load([], None)
