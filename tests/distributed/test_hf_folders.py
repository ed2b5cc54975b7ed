"""Hugging Face folders read and written by sharded models: only this rank's slices, all ranks at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_probsft.checkpoint.convert import megatron_to_hf
from megatron_probsft.checkpoint.hf.export import save_hf_weights
from megatron_probsft.checkpoint.hf.safetensors_folder import TensorReader
from megatron_probsft.checkpoint.hf.safetensors_writer import SafetensorsWriter
from megatron_probsft.checkpoint.hf.weights import load_hf_weights
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed, folders
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import config_for, train, write_pairs


def _model(folder: Path, tp: int, pp: int) -> tuple[Any, Any]:
    distributed.initialize(tp, pp)
    hf = read_hf_model(folder)
    model = build_model(hf, transformer_config(hf.shape, Parallelism(tp, pp), torch.float32))
    load_hf_weights(model, hf)
    return model, hf


@pytest.mark.size("test")
def test_a_folder_with_each_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    """Also of the checkpoint that is resumed, if its folder is missing."""
    data = write_pairs(tmp_path / "train.jsonl", 20)
    hf = tmp_path / "hf"
    settings: dict[str, Any] = {
        "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "save_interval": 1,
        "save_hf": str(hf), "save_hf_at_each_save": True, "save_optim": True, "async_save": True,
    }  # fmt: skip
    train(4, config_for(tmp_path / "run", tiny_llama, data, exit_interval=2, **settings))
    assert sorted(folder.name for folder in hf.iterdir()) == ["iter_0000001", "iter_0000002"]
    (hf / "iter_0000002").rename(tmp_path / "killed before it was written")
    train(4, config_for(tmp_path / "run", None, data, load=str(tmp_path / "run"), **settings))
    assert sorted(folder.name for folder in hf.iterdir()) == [f"iter_000000{step}" for step in (1, 2, 3)]

    for step in (1, 2, 3):
        other = tmp_path / f"converted {step}"
        run_ranks(1, _convert, tmp_path / "run", other, step)
        files = {file.name for file in other.iterdir()}
        assert files == {file.name for file in (hf / f"iter_000000{step}").iterdir()}
        for name in files:
            assert (other / name).read_bytes() == (hf / f"iter_000000{step}" / name).read_bytes(), name


def _convert(run: Path, target: Path, step: int) -> None:
    distributed.initialize()
    megatron_to_hf(run, target, step=step)


@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_reads_its_own_slices_only(tied: bool, tmp_path: Path) -> None:
    """Tied embeddings too: the first and the last of four stages need their rows of them."""
    folder = save_tiny_model(tmp_path / "hf", family="qwen2", tied=tied, heads=8, groups=2)
    for read, held in run_ranks(8, _elements_read, folder):
        assert read == held


def _elements_read(folder: Path) -> tuple[int, int]:
    read = [0]
    plain = TensorReader.read

    def counted(self: TensorReader, name: str, *cuts: slice) -> torch.Tensor:
        tensor = plain(self, name, *cuts)
        read[0] += tensor.numel()
        return tensor

    TensorReader.read = counted
    model, hf = _model(folder, 2, 4)
    padding = 0  # the second of two vocabulary shards ends with it
    if distributed.tensor_group().rank() == 1:
        tables = [p for p in model[0].parameters() if len(p) == -(-hf.shape.vocab_size // 2)]
        padding = hf.shape.hidden_size * len(tables) * (hf.shape.vocab_size % 2)
    return read[0], sum(parameter.numel() for parameter in model[0].parameters()) - padding


def test_no_rank_holds_more_than_a_tensor_of_the_model(tmp_path: Path) -> None:
    """`--save-hf`: each of eight ranks writes its share; of other shards it has one tensor's at a time."""
    folder = save_tiny_model(tmp_path / "hf", family="qwen2", tied=False, heads=8, groups=2, layers=8)
    tensors = load_file(folder / "model.safetensors").values()
    whole, largest = (function(tensor.numel() for tensor in tensors) for function in (sum, max))
    shares = run_ranks(8, _elements_gathered_and_written, folder, tmp_path / "out")
    assert sum(written for _, written in shares) == whole
    for gathered, written in shares:
        assert gathered <= 1.01 * largest  # gate and up, or a vocabulary with its padding
        assert written < 0.3 * whole


def _elements_gathered_and_written(folder: Path, target: Path) -> tuple[int, int]:
    model, hf = _model(folder, 2, 4)
    gathered, written = [], []
    plain_gather, plain_write = dist.all_gather, SafetensorsWriter.write

    def gather(shards: list[torch.Tensor], *args: Any, **settings: Any) -> Any:
        gathered.append(sum(shard.numel() for shard in shards))
        return plain_gather(shards, *args, **settings)

    def write(writer: SafetensorsWriter, name: str, tensor: torch.Tensor) -> None:
        written.append(tensor.numel())
        plain_write(writer, name, tensor)

    dist.all_gather, SafetensorsWriter.write = gather, write  # type: ignore[method-assign]
    save_hf_weights(model, hf, target)
    return max(gathered), sum(written)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder]).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("checked", [True, False], ids=["before the start", "while writing"])
def test_a_full_disk_is_one_line_on_every_rank(
    checked: bool, tiny_llama: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes may fill it after the check."""
    if not checked:
        monkeypatch.setattr(folders, "check_space", lambda *_: None)
    expected = "needs 0.00 GB" if checked else "could not be written: [Errno 28] No space left"
    for message in run_ranks(4, _refused_export, tiny_llama, small_disk / "hf"):
        assert message.startswith(f"{small_disk / 'hf'} {expected}")
        assert "\n" not in message
    assert not list(small_disk.iterdir())


def _refused_export(folder: Path, target: Path) -> str:
    model, hf = _model(folder, 2, 2)
    with pytest.raises(UserError) as caught:
        save_hf_weights(model, hf, target)
    return str(caught.value)


def test_files_with_an_index(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_probsft.checkpoint.hf.safetensors_writer.MAX_FILE_BYTES", 300_000)
    run_ranks(4, _export, tiny_qwen2, tmp_path / "hf")
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    before = load_file(tiny_qwen2 / "model.safetensors")
    assert written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before)
    # And such a folder is read again.
    run_ranks(2, _export, tmp_path / "hf", tmp_path / "again", 2, 1)
    assert (tmp_path / "again" / files[1].name).read_bytes() == files[1].read_bytes()


def _export(folder: Path, target: Path, tp: int = 2, pp: int = 2) -> None:
    model, hf = _model(folder, tp, pp)
    save_hf_weights(model, hf, target)
