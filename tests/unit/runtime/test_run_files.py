"""The files that runs leave have a schema version, and the keys that their dataclasses say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.domains.preparing.preparation import Preparation, prepare
from megatron_probsft.probing.probe import Reading
from megatron_probsft.probing.report import write as write_probe
from megatron_probsft.reporting.report import write_report
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.run_files.schema import SCHEMA_VERSION, FileContent, key, may_be_missing
from megatron_probsft.runtime.run_files.training import ProbeReading, ProbeReport, TrainRecord
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.log.metrics_file import drop_records_after, read_records
from megatron_probsft.training.log.records import Records
from megatron_probsft.vocab_parallel.token_means import TokenMeans
from tests.support.report_runs import write_score, write_training

NEWER = {"schema_version": SCHEMA_VERSION + 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(FileContent):
    name: str
    share_0_1: float | None = key("share_0.1")
    words: dict[str, Any] | None = may_be_missing()
    more: list[str]


def test_keys_are_written_in_order_with_the_version() -> None:
    content = Example.from_keys({"more": [], "share_0.1": None, "name": "a"})
    assert list(content.to_json().items()) == [
        ("schema_version", SCHEMA_VERSION), ("name", "a"), ("share_0.1", None), ("more", [])
    ]  # fmt: skip
    assert "schema_version" not in content.to_part()
    for words in ({"b": 1}, None):  # null is not missing
        assert Example(name="a", share_0_1=1.0, words=words, more=[]).to_json()["words"] == words


@pytest.mark.parametrize(
    "content", [{"name": "a", "share_0.1": 1}, {"name": "a", "share_0.1": 1, "more": [], "other": 1}]
)
def test_a_writer_can_neither_forget_a_key_nor_invent_one(content: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Example.from_keys(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "f.json must be a JSON object, got list"),
        ({}, "f.json is not what a run writes: it has no 'name'"),
        ({"name": None}, "f.json is not what a run writes: 'name' is 'None'"),
        ({"name": "a", "share_0.1": "b"}, "f.json is not what a run writes: 'share_0.1' is 'b'"),
        ({"name": "a", "words": [1]}, "f.json is not what a run writes: 'words' is '[1]'"),
        ({"name": "a", "schema_version": "x"}, "f.json is not what a run writes: 'schema_version' is 'x'"),
        (
            {"name": 3, **NEWER},
            f"f.json has schema version {SCHEMA_VERSION + 1}, and this megatron_probsft reads up to "
            f"{SCHEMA_VERSION}: use the one that wrote it, or a newer one",
        ),
    ],
)
def test_what_a_reader_refuses(content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Example.check(content, "f.json", needs=["name"])
    assert str(caught.value) == message


def test_a_file_of_before_has_no_version_and_may_have_fewer_keys() -> None:
    for content in ({"name": "a"}, {"name": "a", "share_0.1": 1, "unknown": 2}):
        assert Example.check(content, "f.json", needs=["name"]) is content


def _newer(file: Path) -> None:
    """Let a newer version have written the file, or its first line."""
    first, *rest = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    file.write_text("\n".join([json.dumps(json.loads(first) | NEWER), *rest]) + "\n")


@pytest.mark.parametrize(
    "name",
    ["megatron/metrics.jsonl", "megatron/summary.json", "score/summary.json", "score/generations.jsonl"],
)
def test_the_report_refuses_files_of_a_newer_version(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_training(folder / "megatron", "p")
    write_score(folder / "score", {"a": [1, 0]})
    _newer(folder / name)
    with pytest.raises(UserError, match=rf"{name}\b.* has schema version {SCHEMA_VERSION + 1}"):
        write_report([folder], tmp_path / "report")


@pytest.mark.parametrize("reads", [read_records, lambda folder: drop_records_after(folder, 1)])
def test_a_run_of_a_newer_version_is_not_resumed(reads: Callable[[Path], Any], tmp_path: Path) -> None:
    file = write_training(tmp_path / "run", "p") / "metrics.jsonl"
    _newer(file)
    before = file.read_text()
    with pytest.raises(UserError, match="has schema version"):
        reads(tmp_path / "run")
    assert file.read_text() == before


def test_a_prepared_folder(tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"What is {i} + 1?", "answer": f"\\boxed{{{i + 1}}}"}) for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))

    def again() -> dict[str, Any]:
        return prepare(Preparation("math", [str(tmp_path / "rows.jsonl")], tmp_path / "out", validation=1))

    card = again()
    assert card["schema_version"] == SCHEMA_VERSION
    assert again() == card | {"already_there": True}
    _newer(tmp_path / "out" / "card.json")
    with pytest.raises(UserError, match=r"card\.json has schema version"):
        again()


def test_a_probe(tmp_path: Path) -> None:
    write_probe([Reading("a", 1, 0.5, TokenMeans(1, 1.0, 1.0, 0.5, [0.05] * 20, 1.0))], tmp_path)
    content = ProbeReport.read_file(tmp_path / "probe.json", needs=["readings"])
    assert content["schema_version"] == SCHEMA_VERSION
    (reading,) = content["readings"]
    names = ["share_below_0.1", "objectives", "place"]
    ProbeReading.check(reading, "reading", needs=names)
    assert reading["share_below_0.1"] == pytest.approx(0.1)


def test_a_record(tmp_path: Path) -> None:
    values: dict[str, Any] = dict.fromkeys(
        (field.metadata.get("key", field.name) for field in dataclasses.fields(TrainRecord)), 0
    )
    values |= {"loss": float("nan"), "seconds": {}, "spike": [], "p_histogram": [1.0]}
    del values["kind"], values["iteration"], values["entropy"]
    records = Records(TrainConfig.of(save=str(tmp_path)), 0)
    records.write("train", 3, values)
    records.close(failed=False)
    (line,) = read_records(tmp_path)
    assert line == {"schema_version": 1, "kind": "train", "iteration": 3, **values, "loss": None}
    TrainRecord.check(line, "line", needs=["loss", "p_below_0.1", "seconds"])
