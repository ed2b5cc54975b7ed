"""Models, checkpoints and targets that a conversion refuses, in one line each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_probsft.runtime import folders
from megatron_probsft.runtime.errors import UserError
from tests.support.conversions import WEIGHTS, changed_copy, to_hf, to_megatron


@pytest.fixture(scope="module")
def converted(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("converted") / "run"
    to_megatron(tiny_qwen2, run)
    return run


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def _with(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    return lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)})


DOWN = "model.layers.3.mlp.down_proj.weight"
HF_REFUSALS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    f": missing {DOWN}": _without(DOWN),
    f": {DOWN} has shape (128, 95), expected (128, 96)": _with(DOWN, 128, 95),
    ": unexpected model.layers.4.mlp.down_proj.weight": _with("model.layers.4.mlp.down_proj.weight", 128, 96),
    ": model.norm.weight has dtype I8; supported: F32, F16": _with(
        "model.norm.weight", 128, dtype=torch.int8
    ),
}


@pytest.mark.parametrize("message", HF_REFUSALS)
def test_tensors_that_do_not_fit(message: str, tiny_qwen2: Path, tmp_path: Path) -> None:
    source = changed_copy(tiny_qwen2, tmp_path / "hf", HF_REFUSALS[message])
    _refused(f"{source}{message}", lambda: to_megatron(source, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_files_that_are_damaged(tiny_qwen2: Path, converted: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    shutil.copytree(tiny_qwen2, hf)
    os.truncate(hf / WEIGHTS, (hf / WEIGHTS).stat().st_size - 100)
    _refused(f"{hf / WEIGHTS} is truncated or damaged", lambda: to_megatron(hf, tmp_path / "run"))
    index = hf / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    message = f"{hf / 'model-00001-of-00002.safetensors'} is missing, but {index.name} names it"
    _refused(message, lambda: to_megatron(hf, tmp_path / "run"))
    index.write_text("{")
    _refused(f"{index} is damaged", lambda: to_megatron(hf, tmp_path / "run"))

    run = tmp_path / "megatron"
    shutil.copytree(converted, run)
    file = max(run.glob("iter_*/*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    message = f"checkpoint {run / 'iter_0000000'} is damaged: {file.name} has"
    _refused(message, lambda: to_hf(run, tmp_path / "back"))
    (file.parent / "manifest.json").unlink()  # as Megatron-Core's own checkpoints, which have none
    _refused(f"checkpoint {run / 'iter_0000000'}: ", lambda: to_hf(run, tmp_path / "back"))
    (file.parent / ".metadata").write_bytes(b"?")
    message = f"{run / 'iter_0000000' / '.metadata'} cannot be read"
    _refused(message, lambda: to_hf(run, tmp_path / "back"))
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5, "layer_types": None}, "has shape (4, 128), expected (5, 128)"),
        ({"tie_word_embeddings": True}, "unexpected output_layer.weight"),
        ({"vocab_size": 332}, "embedding.word_embeddings.weight has shape (331, 128), expected (332, 128)"),
        ({"architectures": ["LlamaForCausalLM"]}, "unexpected decoder.layers.self_attention.linear_qkv.bias"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model(
    changes: dict[str, Any], message: str, converted: Path, tmp_path: Path
) -> None:
    shutil.copytree(converted, tmp_path / "run")
    checkpoint = tmp_path / "run" / "iter_0000000"
    config = checkpoint / "hf" / "config.json"
    changed = json.loads(config.read_text()) | changes
    if "architectures" in changes:
        changed |= {"model_type": "llama"}
    config.write_text(json.dumps(changed))
    (checkpoint / "manifest.json").unlink()  # which tells that a file was changed
    start = f"checkpoint {checkpoint} does not fit its hf/config.json: "
    assert message in _refused(start, lambda: to_hf(tmp_path / "run", tmp_path / "back"))


def test_targets_that_exist_and_small_disks(
    tiny_qwen2: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refused(f"{tmp_path} exists: choose another", lambda: to_hf(converted, tmp_path))
    _refused(f"{converted} exists: choose another", lambda: to_megatron(tiny_qwen2, converted))
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    message = f"{tmp_path / 'new'} needs 0.00 GB, but {tmp_path} has 0.00 GB free"
    _refused(message, lambda: to_hf(converted, tmp_path / "new"))
    _refused(message, lambda: to_megatron(tiny_qwen2, tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def _refused(start: str, work: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    return message
