"""Checkpoints under way: in the background, on a full disk, damaged, kept and removed; restarts of a job."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from megatron.core import dist_checkpointing

from megatron_probsft.checkpoint.megatron import saving
from megatron_probsft.checkpoint.megatron.run_folder import find_checkpoint, prune, saved_steps
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs

SHARDED = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states by their names, whole."""

    def load() -> dict[str, torch.Tensor]:
        distributed.initialize()
        content = dist_checkpointing.load_plain_tensors(str(checkpoint))
        return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

    return run_ranks(1, load)[0]


@pytest.mark.parametrize(
    ("ranks", "layout"), rows([(1, {}), (1, {"bf16": True}), (4, SHARDED)], fast=[]), ids=str
)
def test_async_save_holds_the_step_it_names(
    ranks: int, layout: dict, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on before it is written: what is written must not."""
    settings: dict[str, Any] = {"save_optim": True, "save_interval": 1, **layout}
    train(ranks, config_for(tmp_path / "sync", tiny_llama, data, **settings))
    write = saving._write
    monkeypatch.setattr(saving, "_write", lambda *arguments: (time.sleep(0.7), write(*arguments)))
    train(ranks, config_for(tmp_path / "async", tiny_llama, data, async_save=True, **settings))
    for step in (1, 2, 3):
        name = f"iter_{step:07d}"
        there, expected = _tensors_of(tmp_path / "async" / name), _tensors_of(tmp_path / "sync" / name)
        assert there.keys() == expected.keys()
        assert any(key.startswith("optimizer") for key in there)
        assert all(torch.equal(there[key], expected[key]) for key in there)
    assert not list((tmp_path / "async").glob("*.part"))


@pytest.mark.size("test")
def test_a_resumed_async_run_continues_identically(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    whole = train(1, config_for(tmp_path / "whole", tiny_llama, data, train_iters=5))
    folder, settings = tmp_path / "parts", {"save_optim": True, "train_iters": 5, "async_save": True}
    train(1, config_for(folder, tiny_llama, data, exit_interval=2, **settings))
    train(1, config_for(folder, None, data, load=str(folder), **settings))
    assert [record["loss"] for record in records(folder)] == [record["loss"] for record in whole]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("ranks", rows([1, 2], fast=[1]))
@pytest.mark.parametrize("async_save", rows([False, True], fast=[False]))
def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(
    async_save: bool, ranks: int, tiny_llama: Path, data: Path, small_disk: Path
) -> None:
    folder = small_disk / "run"
    settings: dict[str, Any] = {"save_optim": True, "train_iters": 40, "async_save": async_save}
    config = config_for(folder, tiny_llama, data, save_interval=1, **settings)
    with pytest.raises(
        UserError, match=r"checkpoint of step \d+ could not be written .* untouched"
    ) as caught:
        train(ranks, config)
    assert "space" in str(caught.value)
    assert "\n" not in str(caught.value)
    _, step = find_checkpoint(folder)
    assert step >= 1
    for old in saved_steps(folder)[:-1]:  # make room
        prune(folder, 1, None)
        assert old not in saved_steps(folder)
    resumed = config_for(folder, None, data, load=str(folder), exit_interval=step + 1, **settings)
    train(ranks, resumed)
    assert find_checkpoint(folder)[1] == step + 1


@pytest.mark.parametrize("place", ["files", "metadata", "folder"])
def test_a_failing_write_is_one_message_on_every_rank(
    place: str, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "files":
        monkeypatch.setattr("megatron.core.dist_checkpointing.strategies.filesystem_async._write_item", fail)
    else:
        monkeypatch.setattr(saving.Save, {"metadata": "_complete", "folder": "_make_part"}[place], fail)
    with pytest.raises(
        UserError, match=r"checkpoint of step 2 could not be written .*No space left on device"
    ):
        train(2, config_for(tmp_path / "run", tiny_llama, data, save_optim=True, save_interval=2))
    assert not list((tmp_path / "run").glob("iter_*"))


@pytest.fixture(scope="module")
def three_saved(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    train(1, config_for(folder, tiny_llama, data, save_optim=True, save_interval=1, train_iters=4))
    return folder


def _copy(folder: Path, target: Path) -> Path:
    subprocess.run(["cp", "-r", folder, target], check=True)
    return target


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used_on_request(
    three_saved: Path, data: Path, tmp_path: Path
) -> None:
    folder = _copy(three_saved, tmp_path / "run")
    whole = records(folder)
    shard = next(folder.glob("iter_0000004/*.distcp"))
    with shard.open("ab") as stream:
        stream.truncate(shard.stat().st_size // 2)
    next(folder.glob("iter_0000003/*.distcp")).unlink()
    settings: dict[str, Any] = {"load": str(folder), "save_optim": True, "train_iters": 4}
    with pytest.raises(UserError, match=rf"iter_0000004 is damaged: {shard.name} .*; --ckpt-step 2 takes"):
        train(1, config_for(folder, None, data, **settings))
    with pytest.raises(UserError, match=r"iter_0000003 is incomplete: .* is missing; --ckpt-step 2"):
        train(1, config_for(folder, None, data, ckpt_step=3, **settings))
    with pytest.raises(UserError, match="no checkpoint of step 9: it has those of steps 1, 2, 3, 4"):
        train(1, config_for(folder, None, data, ckpt_step=9, **settings))
    train(1, config_for(folder, None, data, ckpt_step=2, **settings))
    assert [record["loss"] for record in records(folder)] == [record["loss"] for record in whole]
    assert find_checkpoint(folder)[1] == 4


def test_nothing_whole_before_a_damaged_checkpoint(three_saved: Path, data: Path, tmp_path: Path) -> None:
    folder = _copy(three_saved, tmp_path / "run")
    next(folder.glob("iter_0000001/*.distcp")).unlink()
    with pytest.raises(UserError, match="is missing; no whole one is before it"):
        find_checkpoint(folder, 1)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"most_recent_k": 2}, [5, 6]),
        ({"save_retain_interval": 3}, [3, 6]),
        ({"save_retain_interval": 4}, [4, 6]),
        ({"most_recent_k": 2, "save_retain_interval": 2, "async_save": True}, [2, 4, 5, 6]),
    ],
    ids=str,
)
def test_which_checkpoints_are_kept(
    settings: dict, kept: list[int], tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(1, config_for(folder, tiny_llama, data, train_iters=6, save_interval=1, **settings))
    assert saved_steps(folder) == kept
    assert find_checkpoint(folder)[1] == 6


def test_what_a_killed_run_left_is_removed(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(1, config_for(folder, tiny_llama, data, save_optim=True, exit_interval=1))
    for name in ("iter_0000002.part", "iter_0000000.removed"):
        (folder / name).mkdir()
        (folder / name / "half").write_text("…")
    train(1, config_for(folder, None, data, load=str(folder), save_optim=True))
    assert {path.name for path in folder.glob("iter_*")} == {"iter_0000001", "iter_0000003"}


@pytest.mark.size("test")
def test_one_command_line_starts_and_restarts(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = train(1, config_for(tmp_path / "whole", tiny_llama, data, train_iters=4))

    def again(exit_interval: int | None) -> None:
        settings = {"save_optim": True, "train_iters": 4, "exit_interval": exit_interval}
        train(1, config_for(folder, tiny_llama, data, load=str(folder), **settings))

    again(2)
    assert saved_steps(folder) == [2]
    again(3)
    again(None)
    assert [record["loss"] for record in records(folder)] == [record["loss"] for record in whole]


def test_changes_are_made_only_on_request(three_saved: Path, data: Path, tmp_path: Path) -> None:
    """Learning rate, betas, batch size, objective and data of a resumed run."""
    folder = _copy(three_saved, tmp_path / "run")
    other = write_pairs(tmp_path / "other.jsonl", 30, seed=9)
    changes: dict[str, Any] = {
        "lr": 2e-2, "adam_beta1": 0.5, "global_batch_size": 4, "objective": "p", "train_iters": 6,
        "lr_decay_style": "linear", "ckpt_step": 2, "load": str(folder), "save_optim": True,
        "save_interval": 6,
    }  # fmt: skip
    allowed = ["lr", "adam-beta1", "global-batch-size", "objective", "train-iters", "lr_decay_style"]
    with pytest.raises(UserError, match=r"--lr was 0.01 .* and is now 0.02: .*--allow-changed lr"):
        train(1, config_for(folder, None, other, allow_changed=allowed[1:], **changes))
    with pytest.raises(UserError, match=r"other data.*--allow-changed data"):
        train(1, config_for(folder, None, other, allow_changed=allowed, **changes))
    train(1, config_for(folder, None, other, allow_changed=[*allowed, "data"], **changes))
    steps = records(folder)[2:]
    # Steps 3 to 6 of a linear schedule from 2e-2 to 1e-3, one warmup step of six.
    expected = [2e-2 + (1e-3 - 2e-2) * (step - 1) / 5 for step in (2, 3, 4, 5)]
    assert [step["learning_rate"] for step in steps] == pytest.approx(expected)
    saved = yaml.safe_load((folder / "iter_0000006" / "train_config.yaml").read_text())
    assert saved["objective"] == "p"
    assert len(steps) == 4


def test_a_resume_says_what_it_found(
    three_saved: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = _copy(three_saved, tmp_path / "run")
    settings: dict[str, Any] = {"load": str(folder), "ckpt_step": 2, "save_optim": True}
    settings |= {"clip_grad": 0.5, "allow_changed": ["clip-grad"], "train_iters": 4}
    train(2, config_for(folder, None, data, **settings))
    shown = capfd.readouterr().out
    assert f"{folder} has checkpoints of steps {', '.join(map(str, saved_steps(three_saved)))}" in shown
    assert f"resumed step 2 from {folder / 'iter_0000002'}" in shown
    assert "--clip-grad changed from 1.0 to 0.5" in shown
    assert "the layout changed from {'tensor': 1, 'pipeline': 1, 'data': 1} to " in shown


def test_wrong_flags_of_checkpoints(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            config_for(tmp_path / "run", tiny_llama, data, **settings)

    refused("--load to be the same as --save", load=str(tmp_path / "other"))
    refused("--ckpt-step belongs to --load", ckpt_step=3)
    refused("--allow-changed belongs to --load", allow_changed=["lr"])
    here = str(tmp_path / "run")
    refused("--allow-changed lrr is none of data, .*did you mean lr", load=here, allow_changed=["lrr"])
    refused("--allow-changed bf16 is none of", load=here, allow_changed=["bf16"])
    refused("--save-retain-interval 5 must be a multiple", save_interval=2, save_retain_interval=5)
    refused("--save-retain-interval 5 must be a multiple", save_retain_interval=5)
    refused("--most-recent-k must be more than 0", most_recent_k=0)
