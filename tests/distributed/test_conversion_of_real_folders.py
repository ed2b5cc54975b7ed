"""Folders as they lie on the hub: sharded, with configs of older transformers, with more files beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import Conversion, hf_to_megatron, megatron_to_hf
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import config_for, train, write_pairs
from tests.support.whole_model import logits_of

WEIGHTS = "model.safetensors"
TOKENS = list(range(40, 100))


def _there(source: Path, run: Path, **settings: Any) -> Conversion:
    distributed.initialize()
    return hf_to_megatron(source, run, **settings)


def _back(run: Path, target: Path, **settings: Any) -> Conversion:
    distributed.initialize()
    return megatron_to_hf(run, target, **settings)


def _there_and_back(source: Path, folder: Path) -> Path:
    run_ranks(1, _there, source, folder / "run")
    run_ranks(1, _back, folder / "run", folder / "back")
    return folder / "back"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _same(first: Path, second: Path) -> None:
    before, after = _tensors(first), _tensors(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _our_logits(folder: Path) -> torch.Tensor:
    distributed.initialize()
    return logits_of(folder, TOKENS, Parallelism())[:, :331]


@pytest.mark.parametrize("case", ["Llama 3.1", "Qwen3-MoE"])
def test_shards_that_transformers_wrote(case: str, tmp_path: Path) -> None:
    source = save_tiny_family(tmp_path / "hf", case)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    (source / WEIGHTS).unlink()
    model.save_pretrained(source, max_shard_size="200KB")
    assert len(list(source.glob("model-0*.safetensors"))) > 2
    _same(source, _there_and_back(source, tmp_path))


@pytest.mark.parametrize("scaling", ["llama3", "linear"])
def test_a_config_of_older_transformers(scaling: str, tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` beside each other and `torch_dtype`, as on the hub: used, and kept."""
    source = save_tiny_family(tmp_path / "hf", "Llama 3.1" if scaling == "llama3" else "DeepSeek-Coder")
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    if scaling == "linear":  # older still
        config["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}
    config["torch_dtype"] = config.pop("dtype")
    config["a_field_of_nobody"] = {"kept": [1, None]}
    (source / "config.json").write_text(json.dumps(config))
    back = _there_and_back(source, tmp_path)
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0]
    (found,) = run_ranks(1, _our_logits, back)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    del config["rope_scaling"]
    (source / "config.json").write_text(json.dumps(config))
    (unscaled,) = run_ranks(1, _our_logits, source)
    assert (unscaled - wanted).abs().max() > 0.1  # it does matter here


def test_the_files_beside(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "hf")
    more = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "special_tokens_map.json",
            "added_tokens.json", "merges.txt", "vocab.json", "tokenizer.model", "tekken.json")  # fmt: skip
    for name in more:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(f"this is {name}")
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    (source / "README.md").write_text("not of the model")
    back = _there_and_back(source, tmp_path)
    for name in (*more, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    assert not (back / "README.md").exists()


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    """Equal, it is the embedding; different, transformers would not tie it, so it cannot be left out."""
    source = save_tiny_model(tmp_path / "hf", tied=True)
    tensors = load_file(source / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    after = _tensors(_there_and_back(source, tmp_path))
    assert after.keys() == tensors.keys() - {"lm_head.weight"}
    tensors["lm_head.weight"][7, 3] += 1
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    message = (
        f"{source}: lm_head.weight is not model.embed_tokens.weight, as config.json says with "
        "tie_word_embeddings: true"
    )
    for work in (lambda: _there(source, tmp_path / "other"), lambda: _our_logits(source)):
        with pytest.raises(UserError) as caught:
            run_ranks(1, work)
        assert str(caught.value) == message
    assert not (tmp_path / "other").exists()


def test_a_cast_that_overflows_is_named(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "hf")
    tensors = load_file(source / WEIGHTS)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    expected = "values that are not finite in model.norm.weight"
    (there,) = run_ranks(1, lambda: _there(source, tmp_path / "half", dtype=torch.float16))
    assert [warning.partition(": ")[2] for warning in there.warnings] == [expected]
    (there,) = run_ranks(1, _there, source, tmp_path / "run")
    (back,) = run_ranks(1, lambda: _back(tmp_path / "run", tmp_path / "back", dtype=torch.float16))
    assert there.warnings == []
    assert [warning.partition(": ")[2] for warning in back.warnings] == [expected]


def test_no_weights_or_none_that_are_safetensors(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "hf")
    (source / WEIGHTS).rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"^{source} holds no weights: neither model.safetensors nor model"):
        run_ranks(1, _there, source, tmp_path / "run")


@pytest.mark.parametrize(
    "case",
    rows(
        ["Llama 3.1", "SmolLM2", "Mistral", "Qwen2.5", "Qwen3", "Mixtral", "Qwen3-MoE"],
        fast=["Qwen2.5"],
        rare=["SmolLM2", "Mistral", "Qwen3"],
    ),
)
def test_a_training_run_of_no_steps(case: str, tmp_path: Path) -> None:
    """TP 2 × PP 2 reads a converted checkpoint, or the folder, validates, and saves: no bit changes."""
    source = save_tiny_family(tmp_path / "hf", case, num_hidden_layers=2)
    run_ranks(1, _there, source, tmp_path / "converted")
    data = write_pairs(tmp_path / "train.jsonl", 8)
    settings: dict[str, Any] = {
        "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True,
        "train_iters": 0, "lr_warmup_iters": 0, "valid_data": [str(data)],
        "save_hf": str(tmp_path / "exported"),
    }  # fmt: skip
    start: dict[str, Any] = {"load": str(tmp_path / "converted"), "finetune": True}
    records = train(4, config_for(tmp_path / "run", None, data, **start, **settings))
    assert [record["kind"] for record in records] == ["validation"]
    run_ranks(1, _back, tmp_path / "run", tmp_path / "back")
    _same(source, tmp_path / "back")
    _same(source, tmp_path / "exported")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 0
    shutil.rmtree(tmp_path / "exported")
    again = train(4, config_for(tmp_path / "other", source, data, **settings))
    assert again[0]["nll"] == records[0]["nll"]
    _same(source, tmp_path / "exported")
