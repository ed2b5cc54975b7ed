"""Prepared data: the paper's columns, sources, refusals, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.commands import prepare_data
from megatron_probsft.runtime.errors import UserError
from tests.support.prepared_data import prepare, rows_of
from tests.support.tiny_models import save_tiny_tokenizer

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


MATH_ROWS = [
    {"problem": f"What is {n} + 1?", "solution": f"It is $\\boxed{{{n + 1}}}$.", "source": "x"}
    for n in range(6)
]
M23K_ROWS = [
    {
        "prompt": f"Case {n}?\nA. Aspirin\nB. Rest\n", "answer_letter": "B", "answer_string": "Rest",
        "reasoning": "because", "distilled_answer_string": "So \\boxed{B}.",
    }
    for n in range(4)
]  # fmt: skip


def test_files_in_the_public_layouts(tmp_path: Path) -> None:
    data = write(tmp_path / "numina.jsonl", [*MATH_ROWS, {"problem": "Prove it.", "solution": "Clear."}])
    test = write(tmp_path / "test.jsonl", [{"question": "What is 3 + 1?", "answer": "\\boxed{4}"}])
    empty = write(tmp_path / "more.jsonl", [{"problem": " ", "solution": "\\boxed{1}"}])
    card = prepare("math", [data, empty], tmp_path / "math", test_data=[test], validation=2)
    assert card["rows"] == {"train": 4, "validation": 2, "test": 1}
    assert card["dropped"] == {"no \\boxed{…} in the solution": 1, "empty question or answer": 1}
    assert (card["read"], card["data_sources"]) == (9, sorted([data, test]))
    assert card["test_questions_in_training"] == 1
    row = rows_of(tmp_path / "math", "train")[0]
    assert row["reward_model"]["ground_truth"] == "3"
    assert row["extra_info"] == {
        "split": "train", "index": 2, "question": "What is 2 + 1?", "answer": "It is $\\boxed{3}$.",
    }  # fmt: skip
    content = "What is 2 + 1? Let's think step by step and output the final answer within \\boxed{}."
    assert row["prompt"] == [{"role": "user", "content": content}]

    prepare("medical", write(tmp_path / "m23k.jsonl", M23K_ROWS), tmp_path / "medical", validation=0)
    info = rows_of(tmp_path / "medical", "train")[1]["extra_info"]
    assert (info["question"], info["answer"]) == ("Case 1?\nA. Aspirin\nB. Rest\n", "So \\boxed{B}.")
    assert (info["options"], info["answer_thinking"]) == ({"A": "Aspirin", "B": "Rest"}, "because")
    assert not (tmp_path / "medical" / "validation.parquet").exists()
    # What is prepared may be prepared again, and keeps its source's name.
    again = prepare(
        "medical", [str(tmp_path / "medical" / "train.parquet")], tmp_path / "again", validation=1
    )
    assert again["data_sources"] == [str(tmp_path / "m23k.jsonl")]
    assert rows_of(tmp_path / "again", "train")[0]["extra_info"] == info


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    def refusal(rows: list[Any], domain: str = "math", **settings: Any) -> str:
        with pytest.raises(UserError) as error:
            prepare(domain, write(tmp_path / "rows.jsonl", rows), tmp_path / "output", **settings)
        assert not (tmp_path / "output").exists()
        return str(error.value).replace(str(tmp_path / "rows.jsonl"), "FILE")

    assert refusal([{"text": "x"}]).startswith(
        "FILE: no layout of math data: it needs the columns extra_info."
    )
    assert (
        refusal([*MATH_ROWS, {"problem": 3, "solution": "x"}]) == "FILE:7: 'problem' is of type int, not text"
    )
    assert refusal([*MATH_ROWS, {"problem": "x"}]) == "FILE:7: 'solution' is null or missing, not text"
    assert refusal([*MATH_ROWS, 4]).startswith("FILE:7: is of type int, not a JSON object")
    assert refusal(MATH_ROWS) == "math: 6 rows to train on, and --validation 128 of them leaves none"
    assert refusal(MATH_ROWS, train=-1) == "--train must be 0 or more, got -1"
    assert "is unknown: use one of math, medical, figfont" in refusal([], "law")
    with pytest.raises(UserError, match="no such data file or folder"):
        prepare("math", [str(tmp_path / "none.jsonl")], tmp_path / "output")
    with pytest.raises(
        UserError, match=r"--train must be from 0 to 40,000: the items from there on are the te"
    ):
        prepare("figfont", "generated", tmp_path / "output", train=40_001)
    with pytest.raises(
        UserError, match=r"ICD-10-CM gives [\d,]+ questions for test: ask for as many by --test"
    ):
        prepare("medical", "generated", tmp_path / "output", test=100_000)


def test_a_folder_that_holds_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "rows.jsonl", MATH_ROWS)
    output = tmp_path / "output"
    first = prepare("math", [data], output, validation=2)
    files = {file.name: file.read_bytes() for file in output.iterdir()}
    assert set(files) == {"train.parquet", "validation.parquet", "card.json", "card.md"}
    assert json.loads(files["card.json"]) == first
    assert prepare("math", [data], output, validation=2) == first | {"already_there": True}
    with pytest.raises(UserError, match="holds other data: its validation is 2, not 1: name another folder"):
        prepare("math", [data], output, validation=1)
    write(tmp_path / "rows.jsonl", MATH_ROWS[::-1])
    with pytest.raises(UserError, match="holds other data: its content is"):
        prepare("math", [data], output, validation=2)
    assert files == {file.name: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(UserError, match=r"is not empty and holds no card\.json"):
        prepare("math", [data], tmp_path, validation=2)
    (tmp_path / "empty").mkdir()
    prepare("math", [data], tmp_path / "empty", validation=2)
    assert [path.name for path in tmp_path.glob(".building-*")] == []


@pytest.mark.parametrize("domain", ["math", "medical", "figfont"])
def test_without_the_hub_nothing_is_substituted(
    domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> None:
        raise ConnectionError("Couldn't reach it on the Hub")

    monkeypatch.setattr("megatron_probsft.data.sources.readers._load_from_hub", unreachable)
    with pytest.raises(
        UserError, match=r"gaotang/.*cannot be reached.*--data FILE .* or --generate \("
    ) as error:
        prepare(domain, "hub", tmp_path / "output")
    assert "\n" not in str(error.value)
    assert ("stand-in" in str(error.value)) == (domain != "figfont")
    assert not (tmp_path / "output").exists()


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked = []

    def load(name: str, config: str | None, split: str | None) -> Any:
        asked.append(f"{name}:{split}")
        rows = [
            {
                "ability": "figlet_font",
                "extra_info": {"question": f"{split} {n}", "answer": "WORD", "index": n},
            }
            for n in range(5)
        ]
        return Dataset.from_list(rows)

    monkeypatch.setattr("megatron_probsft.data.sources.readers._load_from_hub", load)
    card = prepare("figfont", "hub", tmp_path / "output", validation=1, test=2)
    assert set(asked) == {"gaotang/figlet_font:train", "gaotang/figlet_font:test"}
    assert card["rows"] == {"train": 4, "validation": 1, "test": 2}
    assert rows_of(tmp_path / "output", "train")[0]["extra_info"]["question"] == "train 1"
    assert rows_of(tmp_path / "output", "test")[1]["extra_info"]["question"] == "test 1"


def test_token_statistics_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "model")
    data = write(tmp_path / "rows.jsonl", MATH_ROWS)
    arguments = ["math", "--data", data, "--validation", "2", "--tokenizer", str(tmp_path / "model")]
    monkeypatch.setattr("sys.argv", ["prepare_data.py", *arguments, "--output", str(tmp_path / "output")])
    prepare_data.main()
    printed = capsys.readouterr().out
    assert "train.parquet" in printed
    assert f"wrote {tmp_path / 'output'}" in printed
    tokens = json.loads((tmp_path / "output" / "card.json").read_text())["tokens"]
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"What is 2 + 1?\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
    )
    length = len(tokenizer(prompt)["input_ids"])
    assert tokens["template"] == "qwen-boxed"
    assert tokens["train"]["prompt"] == {"mean": length, "median": length, "p95": length, "max": length}
    responses = [len(tokenizer(MATH_ROWS[n]["solution"])["input_ids"]) + 1 for n in range(2, 6)]
    assert tokens["train"]["trained_tokens"] == sum(responses)
    assert (
        f"| train | prompt | {length} | {length} | {length} | {length} |"
        in (tmp_path / "output" / "card.md").read_text()
    )
    prepare_data.main()
    assert f"already there: {tmp_path / 'output'}" in capsys.readouterr().out
