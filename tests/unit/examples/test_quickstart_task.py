"""The quick start's questions: right answers, none of them both trained on and held out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples.quickstart.task import write_task
from megatron_probsft.runtime.errors import UserError


def test_no_question_is_in_both_files_nor_twice(tmp_path: Path) -> None:
    write_task(tmp_path, train=1500, heldout=200)
    trained, held = (_questions(tmp_path / name) for name in ("train.jsonl", "heldout.jsonl"))
    assert len(set(trained)) == len(trained) == 1500
    assert len(set(held)) == len(held) == 200
    assert not set(trained) & set(held)
    digits = {len(number) for prompt in trained + held for number in re.findall(r"\d+", prompt)}
    assert digits == {2}  # the same kind of question in both
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["heldout.jsonl", "train.jsonl"]


def test_answers_are_right(tmp_path: Path) -> None:
    write_task(tmp_path, train=500, heldout=200)
    for row in _rows(tmp_path / "train.jsonl") + _rows(tmp_path / "heldout.jsonl"):
        expression = re.fullmatch(r"State the final answer .*: (\d+ [+-] \d+) =", row["prompt"])
        assert expression
        assert row["answer"] == str(_total(expression[1]))
        assert row["response"] == f"{expression[1]} = {row['answer']}"


def test_files_depend_on_the_seed_and_held_out_ones_not_on_the_training_size(tmp_path: Path) -> None:
    for name, train, seed in (("a", 100, 1), ("same", 100, 1), ("longer", 300, 1), ("other", 100, 2)):
        write_task(tmp_path / name, train=train, heldout=50, seed=seed)
    files = {
        name: [(tmp_path / name / f"{part}.jsonl").read_text() for part in ("heldout", "train")]
        for name in ("a", "same", "longer", "other")
    }
    assert files["same"] == files["a"] != files["other"]
    assert files["longer"][0] == files["a"][0]
    assert files["longer"][1].startswith(files["a"][1])


def test_more_questions_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different questions"):
        write_task(tmp_path, train=40_000, heldout=1)


def _rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _questions(file: Path) -> list[str]:
    """The prompts, with a sum's terms in ascending order."""
    return [
        re.sub(r"(\d+) \+ (\d+)", lambda m: " + ".join(sorted(m.groups(), key=int)), row["prompt"])
        for row in _rows(file)
    ]


def _total(expression: str) -> int:
    """Every number with the sign before it, summed."""
    return sum(int(sign + digits) for sign, digits in re.findall(r"([+-]?) ?(\d+)", expression))
