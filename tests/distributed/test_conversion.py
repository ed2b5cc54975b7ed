"""Whole-model conversion: what it carries over, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file, save_file

from megatron_probsft.checkpoint import pieces
from megatron_probsft.checkpoint.convert import Conversion, hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.megatron import run_folder
from megatron_probsft.checkpoint.megatron.torch_dist import load_model, model_state
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed, folders
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.tiny_models import save_tiny_model

WEIGHTS = "model.safetensors"


def _convert(function: Callable[..., Conversion], *args: Any, **settings: Any) -> Conversion:
    torch.set_num_threads(1)  # a forked process has lost its parent's threads
    distributed.initialize()
    return function(*args, **settings)


def _to_megatron(hf: Path, run: Path, **settings: Any) -> Conversion:
    return run_ranks(1, lambda: _convert(hf_to_megatron, hf, run, **settings))[0]


def _to_hf(run: Path, hf: Path, **settings: Any) -> Conversion:
    return run_ranks(1, lambda: _convert(megatron_to_hf, run, hf, **settings))[0]


def _change(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model folder with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def converted(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("converted") / "run"
    _to_megatron(tiny_qwen2, run)
    return run


def test_a_cut_vocabulary_loads_at_any_size(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written block by block (here of one row: 331 is prime), read by three ranks and by a conversion."""
    monkeypatch.setattr(pieces, "_BLOCK_BYTES", 512)
    _to_megatron(tiny_qwen2, tmp_path / "run")
    metadata = dist_checkpointing.load_tensors_metadata(str(tmp_path / "run" / "iter_0000000"))
    assert metadata["output_layer.weight"].global_shape[0] == 331
    shards = run_ranks(2, _vocabularies, tiny_qwen2, tmp_path / "run" / "iter_0000000")
    before = load_file(tiny_qwen2 / WEIGHTS)
    for name, number in (("model.embed_tokens.weight", 0), ("lm_head.weight", 1)):
        whole = torch.cat([shard[number] for shard in shards])
        assert torch.equal(whole[:331], before[name])
        assert not whole[331:].any()
    monkeypatch.setattr("megatron_probsft.checkpoint.hf.safetensors_writer.MAX_SHARD_BYTES", 200_000)
    _to_hf(tmp_path / "run", tmp_path / "back")
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 4
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def _vocabularies(hf_folder: Path, checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    distributed.initialize(2)
    hf = read_hf_model(hf_folder)
    model = build_model(hf.shape, transformer_config(hf.shape, Parallelism(2), torch.float32))
    load_model(model, checkpoint)
    state = model_state(model)["0"]
    return tuple(
        state[name].data.clone() for name in ("embedding.word_embeddings.weight", "output_layer.weight")
    )  # type: ignore[return-value]


def test_casts_and_mixed_dtypes(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Each tensor keeps its own dtype; --dtype casts all."""

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "mlp" in name:
                tensors[name] = tensors[name].bfloat16()

    mixed = _change(tiny_qwen2, tmp_path / "mixed", halve)
    _to_megatron(mixed, tmp_path / "run")
    _to_hf(tmp_path / "run", tmp_path / "same")
    before, after = load_file(mixed / WEIGHTS), load_file(tmp_path / "same" / WEIGHTS)
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    _to_hf(tmp_path / "run", tmp_path / "cast", dtype=torch.float16)
    cast = load_file(tmp_path / "cast" / WEIGHTS)
    assert all(torch.equal(before[name].half(), cast[name]) for name in before)
    assert json.loads((tmp_path / "cast" / "config.json").read_text())["dtype"] == "float16"
    _to_megatron(mixed, tmp_path / "bf16", dtype=torch.bfloat16)
    _to_hf(tmp_path / "bf16", tmp_path / "cast bf16")
    assert (tmp_path / "cast bf16" / WEIGHTS).stat().st_size < (tmp_path / "same" / WEIGHTS).stat().st_size
    cast = load_file(tmp_path / "cast bf16" / WEIGHTS)
    assert all(torch.equal(before[name].bfloat16(), cast[name]) for name in before)


def test_resized_embeddings(tmp_path: Path) -> None:
    """More rows than the tokenizer knows, as `resize_token_embeddings` leaves them."""
    source = save_tiny_model(tmp_path / "hf", vocab_size=347)
    _to_megatron(source, tmp_path / "run")
    _to_hf(tmp_path / "run", tmp_path / "back")
    for name in ("config.json", WEIGHTS):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_values_that_are_not_finite_are_named(tiny_qwen2: Path, tmp_path: Path) -> None:
    def break_some(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = torch.inf
        tensors["model.layers.1.self_attn.k_proj.bias"][0] = torch.nan

    broken = _change(tiny_qwen2, tmp_path / "hf", break_some)
    (warning,) = _to_megatron(broken, tmp_path / "run").warnings
    assert warning.startswith(f"{broken}: values that are not finite in ")
    assert "model.layers.2.mlp.down_proj.weight" in warning
    assert "model.layers.1.self_attn.k_proj.bias" in warning
    (warning,) = _to_hf(tmp_path / "run", tmp_path / "back").warnings
    assert (
        "not finite in model.layers.1.self_attn.k_proj.bias, model.layers.2.mlp.down_proj.weight" in warning
    )


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
    source = _change(tiny_qwen2, tmp_path / "hf", HF_REFUSALS[message])
    _refused(f"{source}{message}", lambda: _to_megatron(source, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_files_that_are_damaged(tiny_qwen2: Path, converted: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    shutil.copytree(tiny_qwen2, hf)
    os.truncate(hf / WEIGHTS, (hf / WEIGHTS).stat().st_size - 100)
    _refused(f"{hf / WEIGHTS} is truncated or damaged", lambda: _to_megatron(hf, tmp_path / "run"))
    index = hf / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    message = f"{hf / 'model-00001-of-00002.safetensors'} is missing, but {index.name} names it"
    _refused(message, lambda: _to_megatron(hf, tmp_path / "run"))
    index.write_text("{")
    _refused(f"{index} is damaged", lambda: _to_megatron(hf, tmp_path / "run"))

    run = tmp_path / "megatron"
    shutil.copytree(converted, run)
    file = max(run.glob("iter_*/*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    message = f"checkpoint {run / 'iter_0000000'} is damaged: {file.name} has"
    _refused(message, lambda: _to_hf(run, tmp_path / "back"))
    (file.parent / "manifest.json").unlink()  # as Megatron-Core's own checkpoints, which have none
    _refused(f"checkpoint {run / 'iter_0000000'}: ", lambda: _to_hf(run, tmp_path / "back"))
    (file.parent / ".metadata").write_bytes(b"?")
    message = f"{run / 'iter_0000000' / '.metadata'} cannot be read"
    _refused(message, lambda: _to_hf(run, tmp_path / "back"))
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
    assert message in _refused(start, lambda: _to_hf(tmp_path / "run", tmp_path / "back"))


def test_targets_that_exist_and_small_disks(
    tiny_qwen2: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refused(f"{tmp_path} exists: choose another", lambda: _to_hf(converted, tmp_path))
    _refused(f"{converted} exists: choose another", lambda: _to_megatron(tiny_qwen2, converted))
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    message = f"{tmp_path / 'new'} needs 0.00 GB, but {tmp_path} has 0.00 GB free"
    _refused(message, lambda: _to_hf(converted, tmp_path / "new"))
    _refused(message, lambda: _to_megatron(tiny_qwen2, tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def _refused(start: str, work: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    return message


@pytest.mark.size("test")
def test_ten_kills_leave_nothing_that_passes_for_complete(tiny_qwen2: Path, tmp_path: Path) -> None:
    """In each direction, at random moments; whatever is left, the same command then succeeds."""
    generator = random.Random(11)
    run, back = tmp_path / "run", tmp_path / "back"
    before = (tiny_qwen2 / WEIGHTS).read_bytes()
    for function, source, target in ((hf_to_megatron, tiny_qwen2, run), (megatron_to_hf, run, back)):
        shortest = _killed_after(None, function, source, target)
        kills = 0
        while kills < 10:
            shutil.rmtree(target)
            _killed_after(generator.uniform(0, shortest), function, source, target)
            if _finds_checkpoint(run) if target is run else back.exists():
                shortest *= 0.8  # it was done before
                continue
            part = tmp_path / "back.part"
            if target is back and (part / "config.json").exists():  # without it no part is a model
                assert (part / WEIGHTS).read_bytes() == before
            kills += 1
            shortest = min(shortest, _killed_after(None, function, source, target))
    assert (back / WEIGHTS).read_bytes() == before
    assert not (tmp_path / "back.part").exists()


def _finds_checkpoint(run: Path) -> bool:
    try:
        run_folder.find_checkpoint(run)
    except UserError:
        return False
    return True


def _killed_after(seconds: float | None, function: Callable[..., Any], *args: Path) -> float:
    """Fork a process that converts; kill it (None: wait for its success). How long it took."""
    started = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=_convert, args=(function, *args))
    process.start()
    process.join(60 if seconds is None else seconds)
    process.kill()
    process.join()
    assert seconds is not None or process.exitcode == 0
    return time.perf_counter() - started
