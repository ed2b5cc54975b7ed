"""The columns that `evaluate --help` names are those that the tasks read, in that order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.commands import evaluate
from megatron_probsft.evaluation.tasks import get_task

OPTIONS = {"A": "two", "B": "three"}
ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("FILE", {"prompt": "1 + 2?", "answer": "3"}, "3"),
    ("math", {"extra_info": {"question": "1 + 2?"}, "reward_model": {"ground_truth": "3"}}, "3"),
    ("math", {"problem": "1 + 2?", "final_answer": ["3"]}, "3"),
    ("math", {"question": "1 + 2?", "answer": "3"}, "3"),
    ("math", {"question": "1 + 2?", "solution": "so \\boxed{3}"}, "3"),
    (
        "medical",
        {"extra_info": {"question": "1 + 2?", "options": OPTIONS}, "reward_model": {"ground_truth": "B"}},
        "B",
    ),
    ("medical", {"prompt": "1 + 2?", "options": OPTIONS, "answer_idx": "B"}, "B"),
    ("medical", {"question": "1 + 2?", "options": OPTIONS, "answer_idx": "B"}, "B"),
    ("figfont", {"extra_info": {"question": "1 + 2?", "answer": "three"}}, "three"),
]


def _named(task: str) -> str:
    """What --help says of a task's columns."""
    section = evaluate.description().partition("Columns of the data")[2].partition("\nA row's")[0]
    found = re.search(rf"^  {task} (.+?)(?=^  \w|\Z)", section, re.MULTILINE | re.DOTALL)
    assert found
    return " ".join(found[1].split())


def _columns(row: dict[str, Any], prefix: str = "") -> list[str]:
    inside = {"extra_info", "reward_model"}
    return [
        name
        for key, value in row.items()
        for name in (_columns(value, f"{key}.") if key in inside else [prefix + key])
    ]


@pytest.mark.parametrize(("name", "row", "answer"), ROWS, ids=lambda value: str(value)[:60])
def test_rows_of_the_named_columns(name: str, row: dict[str, Any], answer: str, tmp_path: Path) -> None:
    assert [column for column in _columns(row) if column not in _named(name)] == []
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    task = get_task(str(file) if name == "FILE" else name, "exact", "prompt", "answer")
    (problem,) = task.load([] if name == "FILE" else [str(file)], None)
    assert "1 + 2?" in problem.prompt
    assert problem.answer == answer


def test_the_first_of_several_counts(tmp_path: Path) -> None:
    """Each column holds its place in the order that --help names."""
    questions, answers = ["problem", "question"], ["final_answer", "answer", "solution"]
    row: dict[str, Any] = {"extra_info": {"question": "0?"}, "reward_model": {"ground_truth": "0"}}
    row |= {key: f"{place}?" for place, key in enumerate(questions, start=1)}
    row |= {"final_answer": ["1"], "answer": "2", "solution": "\\boxed{3}"}
    named = _named("math")
    order = ["extra_info.question", *(f" {key}" for key in questions)]
    assert sorted(order, key=named.index) == order
    order = ["reward_model.ground_truth", *(f" {key}" for key in answers)]
    assert sorted(order, key=named.index) == order
    for place, gone in enumerate(["", "extra_info", "problem"]):
        row.pop(gone, None)
        assert _math(row, tmp_path).prompt == f"{place}?"
    for place, gone in enumerate(["", "reward_model", "final_answer", "answer"]):
        row.pop(gone, None)
        assert _math(row, tmp_path).answer == str(place)


def _math(row: dict[str, Any], folder: Path) -> Any:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return get_task("math", "exact", "", "").load([str(folder / "rows.jsonl")], None)[0]
