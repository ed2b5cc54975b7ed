"""A run stopped and resumed continues as if it had not stopped; what cannot be resumed is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.runtime.errors import UserError
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = {"num_virtual_stages_per_pipeline_rank": 2}
SHARDED = {"use_distributed_optimizer": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _interrupted(
    model: Path, data: Path, folder: Path, first: tuple[int, dict], second: tuple[int, dict], **settings: Any
) -> list[dict]:
    """Steps 1 to 2 under the first layout, 3 to 5 under the second; 20 samples, so an epoch ends inside."""
    common = {"save_optim": True, "train_iters": 5} | settings
    train(first[0], config_for(folder, model, data, exit_interval=2, **common, **first[1]))
    assert [record["iteration"] for record in records(folder)] == [1, 2]
    train(second[0], config_for(folder, None, data, load=str(folder), **common, **second[1]))
    return records(folder)


SAME: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (4, TP2 | SHARDED | {"bf16": True}),
    (4, PP2 | SHARDED),  # two buckets, paddings between them
    (2, SHARDED),
]
SAME_RARE: list[tuple[int, dict[str, Any]]] = [
    (1, {"bf16": True}),
    (4, TP2 | PP2 | {"sequence_parallel": True}),
    (4, PP2 | VPP2 | SHARDED),
]


@pytest.mark.parametrize(
    ("ranks", "settings"), rows(SAME + SAME_RARE, fast=SAME[:1], rare=SAME_RARE), ids=str
)
def test_same_layout_continues_identically(
    ranks: int, settings: dict, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    whole = train(ranks, config_for(tmp_path / "whole", tiny_llama, data, train_iters=5, **settings))
    parts = _interrupted(tiny_llama, data, tmp_path / "parts", (ranks, settings), (ranks, settings))
    for key in ("loss", "nll", "mean_p", "grad_norm", "learning_rate", "supervised_tokens"):
        assert [record[key] for record in parts] == [record[key] for record in whole], key


OTHER: list[tuple] = [
    ((2, TP2), (2, PP2), {}),
    ((2, {}), (2, TP2), SHARDED),
    ((2, PP2 | VPP2), (2, TP2), {}),
    ((1, {}), (4, PP2 | VPP2), SHARDED),
]
OTHER_RARE: list[tuple] = [
    ((1, {}), (4, TP2 | {"sequence_parallel": True}), {}),
    ((4, TP2), (4, PP2), SHARDED),
]


@pytest.mark.parametrize(
    ("first", "second", "shared"), rows(OTHER + OTHER_RARE, fast=OTHER[:1], rare=OTHER_RARE), ids=str
)
def test_another_layout_continues_equally(
    first: tuple, second: tuple, shared: dict, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    whole = train(1, config_for(tmp_path / "whole", tiny_llama, data, train_iters=5))
    parts = _interrupted(tiny_llama, data, tmp_path / "parts", first, second, **shared)
    for key in ("loss", "grad_norm"):
        expected = [record[key] for record in whole]
        assert [record[key] for record in parts] == pytest.approx(expected, rel=1e-5), key


@pytest.fixture(scope="module")
def stopped(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(1, config_for(folder, tiny_llama, data, exit_interval=1, save_optim=True))
    return folder


def _refused(stopped: Path, data: Path, message: str, **settings: Any) -> None:
    config = config_for(stopped, None, data, load=str(stopped), save_optim=True, **settings)
    with pytest.raises(UserError, match=message) as caught:
        train(1, config)
    assert "\n" not in str(caught.value)


def test_other_settings_or_data_are_refused(stopped: Path, data: Path, tmp_path: Path) -> None:
    _refused(stopped, data, "--objective was original .* and is now p", objective="p")
    _refused(stopped, data, "--global-batch-size was 8", global_batch_size=4)
    _refused(stopped, data, "--seed was 5", seed=6)
    _refused(stopped, data, "--lr was 0.01", lr=2e-2)
    _refused(stopped, data, "--train-iters was 3", train_iters=9)
    other = write_pairs(tmp_path / "other.jsonl", 20, seed=9)
    _refused(stopped, other, "trained on other data")


def test_a_missing_or_damaged_checkpoint_is_named(stopped: Path, data: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match="nowhere does not exist"):
        train(1, config_for(tmp_path / "new", None, data, load=str(nowhere)))
    nowhere.mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(1, config_for(tmp_path / "new", None, data, load=str(nowhere)))

    damaged = tmp_path / "damaged"
    shutil.copytree(stopped, damaged)
    shard = next(damaged.glob("iter_0000001/*.distcp"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{shard.name} has {len(whole) // 2} bytes, expected {len(whole)}"):
        train(1, config_for(damaged, None, data, load=str(damaged)))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        train(1, config_for(damaged, None, data, load=str(damaged)))


def test_a_run_that_no_longer_saves_optimizers_still_resumes_one(
    stopped: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    train(1, config_for(run, None, data, load=str(run), save_optim=False))
    assert [record["iteration"] for record in records(run, "train")] == [1, 2, 3]


def test_weights_only_checkpoints_start_anew_with_finetune(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    train(1, config_for(tmp_path / "first", tiny_llama, data, valid_data=[str(data)]))
    with pytest.raises(UserError, match="weights only"):
        train(1, config_for(tmp_path / "second", None, data, load=str(tmp_path / "first")))
    settings = {"load": str(tmp_path / "first"), "finetune": True, "valid_data": [str(data)]}
    train(2, config_for(tmp_path / "third", None, data, objective="p", **settings, **TP2))
    before, after = (records(tmp_path / name, "validation") for name in ("first", "third"))
    assert after[0]["iteration"] == 0
    assert after[0]["nll"] == pytest.approx(before[-1]["nll"], rel=1e-5)
