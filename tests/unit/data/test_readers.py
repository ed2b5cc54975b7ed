"""Folders of `datasets` and data sets of the hub: what is read, how it is named, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from megatron_probsft.data.sources import readers
from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.data.sources.rows import read_rows
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer
from tests.support.token_stores import build_store

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"info": {"q": f"{name} {i}", "w": 1.5}, "response": f"r{i}"} for i in range(count)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    readers._load_from_hub.cache_clear()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`one` without splits, `two` with train and test."""
    Dataset.from_list(rows("one", 2500)).save_to_disk(tmp_path / "one", num_shards=2)
    splits = {name: Dataset.from_list(rows(name, count)) for name, count in (("train", 3), ("test", 2))}
    DatasetDict(**splits).save_to_disk(tmp_path / "two")
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`load_dataset` of the name owner/words reads a folder laid out as the hub's are, two configurations."""
    folder = tmp_path / "repository"
    folder.mkdir()
    card = "---\nconfigs:\n"
    for config in ("main", "other"):
        card += f"- config_name: {config}\n  data_files:\n"
        for split, count in (("train", 3), ("test", 2)):
            lines = [json.dumps(row) for row in rows(f"{config} {split}", count)]
            (folder / f"{config}-{split}.jsonl").write_text("\n".join(lines) + "\n")
            card += f"  - split: {split}\n    path: {config}-{split}.jsonl\n"
    (folder / "README.md").write_text(card + "---\n")
    load = datasets.load_dataset

    def load_dataset(name: str, *arguments: Any, **settings: Any) -> Any:
        return load(str(folder) if name == "owner/words" else name, *arguments, **settings)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return folder


def prompts(*items: str) -> list[str]:
    return [row["prompt"] for row in read_rows(items, prompt_key="info.q")]


def test_folders_are_read(folders: Path) -> None:
    one, train = str(folders / "one"), f"{folders}/two:train"
    loaded = list(read_rows([one, train], prompt_key="info.q", weight_key="info.w"))
    expected = [f"one {i}" for i in range(2500)] + [f"train {i}" for i in range(3)]
    assert [row["prompt"] for row in loaded] == expected
    assert [row["row"] for row in loaded] == [*range(1, 2501), 1, 2, 3]
    assert [row["source"] for row in loaded[2499:2501]] == [0, 1]
    assert loaded[2500]["weights"] == [1.5]
    assert [reader_of(item).count() for item in (one, train)] == [2500, 3]
    assert prompts(f"{folders}/two:test") == ["test 0", "test 1"]


def test_a_folder_of_conversations(tmp_path: Path) -> None:
    Dataset.from_list([{"messages": CHAT}]).save_to_disk(tmp_path / "chats")
    assert next(read_rows([str(tmp_path / "chats")]))["messages"] == CHAT


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("two", "two: name a split: {0}/two:train, {0}/two:test"),
        ("two:valid", "two:valid: has no split 'valid': {0}/two:train, {0}/two:test"),
        ("one:train", "one:train: {0}/one has no splits, give it without :train"),
        ("none", "none: not a whole folder of Dataset.save_to_disk (of others name the .parquet or .jsonl"),
        ("cut", "cut: not a whole folder of Dataset.save_to_disk"),
        ("empty", "empty: there are no rows"),
        ("bad", "bad:2: 'response' is null"),
        ("nowhere:train", "nowhere:train: no such data file or folder (of the hub: owner/name:config:split)"),
        ("nowhere/file.parquet", "nowhere/file.parquet: no such data file or folder"),
    ],
)
def test_bad_folders_are_named(folders: Path, item: str, message: str) -> None:
    (folders / "none").mkdir()
    shutil.copytree(folders / "one", folders / "cut")
    next((folders / "cut").glob("*.arrow")).unlink()
    pairs = Dataset.from_list([{"prompt": "p", "response": "r"}, {"prompt": "p", "response": None}])
    pairs.save_to_disk(folders / "bad")
    pairs.select([]).save_to_disk(folders / "empty")
    with pytest.raises(UserError) as error:
        list(read_rows([f"{folders}/{item}"], prompt_key="prompt" if item == "bad" else "info.q"))
    assert str(error.value).startswith(f"{folders}/" + message.format(folders))
    assert "\n" not in str(error.value)


def test_the_digest_of_a_folder_is_of_its_content(folders: Path) -> None:
    digest = reader_of(str(folders / "one")).digest()
    shutil.copytree(folders / "one", folders / "copy")
    assert reader_of(str(folders / "copy")).digest() == digest
    state = folders / "copy" / "state.json"  # whose fingerprint is the folder's, whatever the content
    shutil.rmtree(folders / "copy")
    Dataset.from_list(rows("eno", 2500)).save_to_disk(folders / "copy", num_shards=2)
    shutil.copy(folders / "one" / "state.json", state)
    assert reader_of(str(folders / "copy")).digest() != digest
    splits = {reader_of(f"{folders}/two:{name}").digest() for name in ("train", "test")}
    assert len(splits) == 2


def test_the_hub_is_read(hub: Path) -> None:
    assert prompts("owner/words:main:test") == ["main test 0", "main test 1"]
    assert prompts("owner/words:other:train") == ["other train 0", "other train 1", "other train 2"]
    (hub / "README.md").unlink()  # one configuration
    for file in hub.glob("other-*"):
        file.unlink()
    readers._load_from_hub.cache_clear()
    assert prompts("owner/words:train") == ["main train 0", "main train 1", "main train 2"]


def test_the_hubs_content_is_in_the_digest(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = ["owner/words:main:train", "owner/words:other:train", "owner/words:main:test"]
    digests = [reader_of(item).digest() for item in items]
    assert len(set(digests)) == 3
    assert digests == [reader_of(item).digest() for item in items]
    (hub / "main-train.jsonl").write_text('{"info": {"q": "new", "w": 1.5}, "response": "r"}\n')
    readers._load_from_hub.cache_clear()
    # `datasets` keeps what it made of a local folder; on the hub another revision is another name.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another")
    assert reader_of(items[0]).digest() != digests[0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("owner/words:train", "owner/words:train: Config name is missing. Please pick one among the "
         "available configs: ['main', 'other'] (spelled owner/name:config:split)"),
        ("owner/words:mian:train", "owner/words:mian:train: BuilderConfig 'mian' not found. Available: "
         "['main', 'other'] (spelled owner/name:config:split)"),
        ("owner/words:main:valid",
         "owner/words:main:valid: Unknown split \"valid\". Should be one of ['train', 'test'] (spelled"),
        ("owner/elsewhere:train", "owner/elsewhere:train: no such file or folder, and on the hub it cannot "
         "be reached: where there is a network keep it with Dataset.save_to_disk and give that folder: "),
    ],
)  # fmt: skip
def test_what_the_hub_lacks_is_named(hub: Path, item: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        prompts(item)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_data_set_that_cannot_be_made_is_named(hub: Path) -> None:
    (hub / "main-train.jsonl").write_text('{"info": {"q": 1}, "response": "r"}\n{"info": [\n')
    with pytest.raises(UserError, match=r"^owner/words:main:train: .*JSON parse error") as error:
        prompts("owner/words:main:train")
    assert "\n" not in str(error.value)


def test_a_missing_split_names_those_there_are(hub: Path) -> None:
    (hub / "README.md").unlink()
    with pytest.raises(UserError, match=r"owner/words: name a split: owner/words:t\w+, owner/words:t"):
        prompts("owner/words")


def test_rows_of_the_hub_are_named_and_stored(hub: Path, tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    settings: dict[str, Any] = {
        "template": "chat", "seq_length": 400, "vocab_size": VOCAB_SIZE, "cache_dir": tmp_path / "store",
        "log": lambda _: None, "prompt_key": "info.q",
    }  # fmt: skip
    items = ["owner/words:main:train", "owner/words:other:test"]
    store = build_store(items, tokenizer, **settings)
    assert store.sources == items
    assert store.source.tolist() == [0, 0, 0, 1, 1]
    assert build_store(items, tokenizer, **settings).digest == store.digest
    settings["seq_length"] = 4
    with pytest.raises(UserError, match=r"^owner/words:main:train:1: the sample has \d+ positions"):
        build_store(items, tokenizer, **settings)
