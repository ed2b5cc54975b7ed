"""Generated data, held against the libraries that they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
import simple_icd_10_cm as icd

from megatron_probsft.data.sources.rows import read_rows
from tests.support.prepared_data import prepare, rows_of

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def figfont(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figfont") / "data"
    prepare("figfont", "generated", folder, train=260, test=130)
    return folder


def test_figlet_puzzles_are_reasoning_gyms_at_the_papers_indices(figfont: Path) -> None:
    dataset: Any = reasoning_gym.create_dataset(
        "figlet_font", size=10, seed=42, min_word_len=2, max_word_len=5, space_letters=True
    )
    expected = {"validation": range(128), "train": range(128, 260), "test": range(40000, 40130)}
    for part, indices in expected.items():
        rows = rows_of(figfont, part)
        assert [row["extra_info"]["index"] for row in rows] == list(indices)
        for row, index in zip(rows, indices, strict=True):
            item, info = dataset[index], row["extra_info"]
            assert (info["question"], info["answer"]) == (item["question"], item["answer"])
            assert row["prompt"] == [{"role": "user", "content": item["question"]}]
            assert row["reward_model"] == {"style": "rule", "ground_truth": item["answer"]}
            assert info["split"] == part
    question = rows[0]["extra_info"]["question"]
    decodes = (
        "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word "
        "it represents and output only that without any explanations or additional text."
    )
    assert rows[0]["extra_info"]["qwen_prompt"] == (
        f"<|im_start|>system\n{decodes}<|im_end|>\n<|im_start|>user\n{question}\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rows[0]["extra_info"]["llama_prompt"] == (
        f"<|begin_of_text|><|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{decodes}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_trainer_reads_what_is_written(figfont: Path) -> None:
    rows = read_rows(
        [str(figfont / "train.parquet")], prompt_key="extra_info.question", response_key="extra_info.answer"
    )
    assert sum(1 for row in rows if row["response"].isalpha()) == 132


def test_word_problems_end_in_a_box_and_share_no_template(tmp_path: Path) -> None:
    card = prepare("math", "generated", tmp_path / "data", train=700, test=200)
    parts = {part: rows_of(tmp_path / "data", part) for part in ("train", "validation", "test")}
    assert {part: len(rows) for part, rows in parts.items()} == card["rows"]
    assert card["rows"] == {"train": 572, "validation": 128, "test": 200}
    dataset: Any = reasoning_gym.create_dataset("gsm_symbolic", seed=42, size=20_000)
    templates: dict[str, set[int]] = {}
    for part, rows in parts.items():
        for row in rows:
            info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
            item = dataset[info["index"]]
            assert info["question"] == item["question"]
            assert float(truth) == float(item["answer"])
            assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", truth)
            solution = item["metadata"]["answer_cot"].split("####")[0].rstrip()
            assert info["answer"] == f"{solution}\nThe answer is \\boxed{{{truth}}}."
        templates[part] = {dataset.task_indices[row["extra_info"]["index"]] for row in rows}
    assert templates["test"] == set(card["about"]["test_templates"])
    assert not templates["test"] & (templates["train"] | templates["validation"])
    assert len(templates["train"]) > 60
    assert card["data_sources"] == ["generated stand-in: gsm_symbolic (reasoning-gym)"]
    assert any("no GSM8K score" in note for note in card["notes"])
    assert len({row["extra_info"]["question"] for rows in parts.values() for row in rows}) == 900


def test_diagnoses_are_where_icd_10_has_them_and_categories_held_out(tmp_path: Path) -> None:
    card = prepare("medical", "generated", tmp_path / "data", train=3000, test=400)
    parts = {part: rows_of(tmp_path / "data", part) for part in ("train", "validation", "test")}
    categories: dict[str, set[str]] = {part: set() for part in parts}
    letters = []
    for part, rows in parts.items():
        for row in rows:
            info, letter = row["extra_info"], row["reward_model"]["ground_truth"]
            options = {key: text for key, text in info["options"].items() if text is not None}
            asked, *listed = info["question"].split("\n")
            assert listed == [f"{key}. {text}" for key, text in options.items()]
            assert asked.split('"')[1] == icd.get_description(info["code"])
            above = icd.get_ancestors(info["code"])
            right = above[-1] if info["kind"] == "chapter" else above[-2]
            assert (
                icd.get_description(right)
                == f"{options[letter]} ({icd.get_description(right).split(' (')[-1]}"
            )
            assert len(set(options.values())) == len(options) == (5 if info["kind"] == "chapter" else 4)
            assert info["answer"] == info["answer_raw"]
            assert info["answer"].endswith(f"The answer is \\boxed{{{letter}}}.")
            assert (info["answer_letter"], info["answer_string"]) == (letter, options[letter])
            assert info["question_instruction"] == f"{info['question']}\n{BOXED}"
            categories[part].add(info["code"].split(".")[0])
            letters.append(letter)
    assert not categories["test"] & (categories["train"] | categories["validation"])
    assert card["data_sources"] == ["generated stand-in: icd10_choice (simple-icd-10-cm)"]
    assert card["test_questions_in_training"] == 0
    shares = [letters.count(letter) / len(letters) for letter in "ABCDE"]
    assert 0.18 < min(shares[:4]) < max(shares) < 0.27
    assert 0.07 < shares[4] < 0.13


def test_a_seed_gives_the_same_and_another_other_questions(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        prepare("medical", "generated", tmp_path / name, train=300, test=50, seed=seed)
    one, same, other = (rows_of(tmp_path / name, "test") for name in ("one", "same", "other"))
    assert one == same
    assert one != other
