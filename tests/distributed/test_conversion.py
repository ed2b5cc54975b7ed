"""Whole-model conversion: what it carries over, and what a kill leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file

from megatron_probsft.checkpoint import blocks
from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.megatron import run_folder
from megatron_probsft.checkpoint.megatron.torch_dist import load_model, model_state
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from tests.support.conversions import WEIGHTS, changed_copy, converted_here, to_hf, to_megatron
from tests.support.ranks import run_ranks
from tests.support.tiny_models import save_tiny_model


def test_a_cut_vocabulary_loads_at_any_size(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written block by block (here of one row: 331 is prime), read by three ranks and by a conversion."""
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 512)
    to_megatron(tiny_qwen2, tmp_path / "run")
    metadata = dist_checkpointing.load_tensors_metadata(str(tmp_path / "run" / "iter_0000000"))
    assert metadata["output_layer.weight"].global_shape[0] == 331
    shards = run_ranks(2, _vocabularies, tiny_qwen2, tmp_path / "run" / "iter_0000000")
    before = load_file(tiny_qwen2 / WEIGHTS)
    for name, number in (("model.embed_tokens.weight", 0), ("lm_head.weight", 1)):
        whole = torch.cat([shard[number] for shard in shards])
        assert torch.equal(whole[:331], before[name])
        assert not whole[331:].any()
    monkeypatch.setattr("megatron_probsft.checkpoint.hf.safetensors_writer.MAX_FILE_BYTES", 200_000)
    to_hf(tmp_path / "run", tmp_path / "back")
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 4
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def _vocabularies(hf_folder: Path, checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    distributed.initialize(2)
    hf = read_hf_model(hf_folder)
    model = build_model(hf, transformer_config(hf.shape, Parallelism(2), torch.float32))
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

    mixed = changed_copy(tiny_qwen2, tmp_path / "mixed", halve)
    to_megatron(mixed, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "same")
    before, after = load_file(mixed / WEIGHTS), load_file(tmp_path / "same" / WEIGHTS)
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    to_hf(tmp_path / "run", tmp_path / "cast", dtype=torch.float16)
    cast = load_file(tmp_path / "cast" / WEIGHTS)
    assert all(torch.equal(before[name].half(), cast[name]) for name in before)
    assert json.loads((tmp_path / "cast" / "config.json").read_text())["dtype"] == "float16"
    to_megatron(mixed, tmp_path / "bf16", dtype=torch.bfloat16)
    to_hf(tmp_path / "bf16", tmp_path / "cast bf16")
    assert (tmp_path / "cast bf16" / WEIGHTS).stat().st_size < (tmp_path / "same" / WEIGHTS).stat().st_size
    cast = load_file(tmp_path / "cast bf16" / WEIGHTS)
    assert all(torch.equal(before[name].bfloat16(), cast[name]) for name in before)


def test_resized_embeddings(tmp_path: Path) -> None:
    """More rows than the tokenizer knows, as `resize_token_embeddings` leaves them."""
    source = save_tiny_model(tmp_path / "hf", vocab_size=347)
    to_megatron(source, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "back")
    for name in ("config.json", WEIGHTS):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_values_that_are_not_finite_are_named(tiny_qwen2: Path, tmp_path: Path) -> None:
    def break_some(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = torch.inf
        tensors["model.layers.1.self_attn.k_proj.bias"][0] = torch.nan

    broken = changed_copy(tiny_qwen2, tmp_path / "hf", break_some)
    (warning,) = to_megatron(broken, tmp_path / "run").warnings
    assert warning.startswith(f"{broken}: values that are not finite in ")
    assert "model.layers.2.mlp.down_proj.weight" in warning
    assert "model.layers.1.self_attn.k_proj.bias" in warning
    (warning,) = to_hf(tmp_path / "run", tmp_path / "back").warnings
    assert (
        "not finite in model.layers.1.self_attn.k_proj.bias, model.layers.2.mlp.down_proj.weight" in warning
    )


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
    process = multiprocessing.get_context("fork").Process(target=converted_here, args=(function, *args))
    process.start()
    process.join(60 if seconds is None else seconds)
    process.kill()
    process.join()
    assert seconds is not None or process.exitcode == 0
    return time.perf_counter() - started
