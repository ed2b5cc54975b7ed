"""The same samples in other shapes give the same run; epochs and schedules end where they should."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.arguments import parse_arguments
from tests.support.training_runs import config_for, records, train, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _losses(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in records(folder, "train")]


def test_messages_and_nested_parquet_train_as_pairs_do(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    messages = tmp_path / "messages.jsonl"
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        for row in rows
    ]
    messages.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    nested = tmp_path / "nested.parquet"
    columns = [{"question": row["prompt"], "answer": row["response"]} for row in rows]
    pq.write_table(pa.table({"extra_info": columns}), nested)

    train(1, config_for(tmp_path / "pairs", tiny_llama, data))
    train(1, config_for(tmp_path / "chat", tiny_llama, messages))
    keys = {"prompt_key": "extra_info.question", "response_key": "extra_info.answer"}
    train(1, config_for(tmp_path / "nested", tiny_llama, nested, **keys))
    assert _losses(tmp_path / "pairs") == _losses(tmp_path / "chat") == _losses(tmp_path / "nested")


def test_an_epoch_and_a_half_sees_every_sample_once_then_half_of_them(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """20 samples, batches of 8: 30 samples in steps of 8, 8, 8 and 6; the epoch ends inside the third."""
    settings = {"train_epochs": 1.5, "lr_warmup_iters": 0, "valid_data": [str(data)], "eval_interval": 2}
    records_of = train(1, config_for(tmp_path / "run", tiny_llama, data, **settings))
    steps = [record for record in records_of if record["kind"] == "train"]
    validations = [record for record in records_of if record["kind"] == "validation"]
    assert [record["iteration"] for record in steps] == [1, 2, 3, 4]
    assert [record["iteration"] for record in validations] == [0, 2, 4]
    epoch = validations[0]["supervised_tokens"]
    first_epoch = train(1, config_for(tmp_path / "one", tiny_llama, data, train_epochs=1, lr_warmup_iters=0))
    assert sum(record["supervised_tokens"] for record in first_epoch) == epoch
    assert epoch < sum(record["supervised_tokens"] for record in steps) < 2 * epoch


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"lr_decay_style": "constant", "lr_warmup_iters": 2}, [0, 0.5, 1, 1, 1]),
        ({"lr_decay_style": "linear", "lr_warmup_iters": 1, "min_lr": 0.0}, [0, 1, 0.75, 0.5, 0.25]),
        ({"lr_decay_style": "linear", "lr_warmup_fraction": 0.2, "lr_warmup_iters": 0, "min_lr": 0.0},
         [0, 1, 0.75, 0.5, 0.25]),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2, "lr_warmup_iters": 0, "min_lr": 0.0},
         [1, 1, 1, 1, 0.5]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_schedules(settings: dict, rates: list[float], tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    steps = train(1, config_for(tmp_path / "run", tiny_llama, data, train_iters=5, lr=1e-3, **settings))
    assert [record["learning_rate"] for record in steps] == pytest.approx([1e-3 * rate for rate in rates])


def test_warmup_longer_than_the_run_is_refused(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--lr-warmup-iters 3 leaves nothing"):
        train(1, config_for(tmp_path / "run", tiny_llama, data, lr_warmup_iters=3))


def test_the_saved_configuration_runs_again(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    train(1, config_for(tmp_path / "first", tiny_llama, data, objective="GeneralFamily-8"))
    saved = tmp_path / "first" / "train_config.yaml"
    assert yaml.safe_load(saved.read_text())["objective"] == "GeneralFamily-8"
    train(1, parse_arguments(["--config", str(saved), "--save", str(tmp_path / "second")]))
    assert _losses(tmp_path / "first") == _losses(tmp_path / "second")


def test_save_hf_holds_the_trained_weights(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Start again from the exported folder: validation continues where the run ended, on another layout."""
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "valid_data": [str(data)]}
    config = config_for(tmp_path / "run", tiny_llama, data, save_hf=str(tmp_path / "hf"), **layout)
    train(4, config)
    train(1, config_for(tmp_path / "again", tmp_path / "hf", data, valid_data=[str(data)]))
    last, first = records(tmp_path / "run", "validation")[-1], records(tmp_path / "again", "validation")[0]
    assert first["nll"] == pytest.approx(last["nll"], rel=1e-5)
    assert first["p_histogram"] == pytest.approx(last["p_histogram"], abs=1e-3)


def test_every_validation_file_is_reported_by_itself(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    files = [write_pairs(tmp_path / f"{seed}.jsonl", count, seed) for seed, count in ((1, 11), (2, 5))]
    alone = []
    for number, file in enumerate(files):
        settings = {"valid_data": [str(file)], "train_iters": 1, "lr_warmup_iters": 0}
        train(1, config_for(tmp_path / f"alone {number}", tiny_llama, data, **settings))
        alone.append(records(tmp_path / f"alone {number}", "validation")[-1])
    settings["valid_data"] = [str(file) for file in files]
    train(2, config_for(tmp_path / "both", tiny_llama, data, **settings))
    both = records(tmp_path / "both", "validation")[-1]
    tokens = [record["supervised_tokens"] for record in alone]
    assert both["supervised_tokens"] == sum(tokens)
    for key in ("loss", "nll", "mean_p"):
        each = [record[key] for record in alone]
        assert [both["sources"][str(file)][key] for file in files] == pytest.approx(each, rel=1e-5)
        whole = sum(value * n for value, n in zip(each, tokens, strict=True)) / sum(tokens)
        assert both[key] == pytest.approx(whole, rel=1e-5)
