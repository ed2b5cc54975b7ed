"""verify tells equal models from unequal ones and names the place; inspect says what a folder is."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_probsft.checkpoint.convert import hf_to_megatron
from megatron_probsft.checkpoint.inspection import inspect_hf, inspect_megatron
from megatron_probsft.checkpoint.verdict import LOGITS, Check, Verdict, sentence
from megatron_probsft.checkpoint.verify import verify
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.tiny_families import save_tiny_family
from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import config_for, train, write_pairs

TOKENS = torch.randint(0, 331, (90,), generator=torch.Generator().manual_seed(3)).tolist()


def _convert(source: Path, run: Path) -> Path:
    distributed.initialize()
    return hf_to_megatron(source, run).folder


def _verified(folder: Path, checkpoint: Path | None, tokens: list[int] = TOKENS) -> list[Verdict]:
    distributed.initialize()
    return verify(read_hf_model(folder), checkpoint, tokens, ["fp32", "bf16"], lambda _: None)


@pytest.mark.parametrize("case", ["Llama 3.2", "Qwen2.5-Math", "Qwen3-MoE"])
def test_equal_models(case: str, tmp_path: Path) -> None:
    folder = save_tiny_family(tmp_path / "hf", case, num_hidden_layers=3)
    (checkpoint,) = run_ranks(1, _convert, folder, tmp_path / "run")
    for source in (checkpoint, None):
        (fp32, bf16) = run_ranks(1, _verified, folder, source)[0]
        assert fp32.first_departure is None
        assert bf16.first_departure is None
        assert fp32.max_abs_logprob_diff < 1e-4 < bf16.max_abs_logprob_diff
        assert fp32.positions == 89
        places = ["embedding", "layer 0", "layer 1", "layer 2", "final norm"]
        assert [*fp32.layers] == [*bf16.layers] == places
        for verdict in (fp32, bf16):
            assert [check.place for check in verdict.checks] == [*places, LOGITS]
            assert all(check.passed for check in verdict.checks)
            assert verdict.checks[-1] == Check(LOGITS, verdict.departure, verdict.limit)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.k_proj.bias", "layer 0"),
        ("model.layers.2.mlp.up_proj.weight", "layer 2"),
        ("model.layers.3.post_attention_layernorm.weight", "layer 3"),
        ("model.norm.weight", "final norm"),
        ("lm_head.weight", "output layer"),
    ],
)
def test_a_wrong_tensor_is_placed(tensor: str, place: str, tiny_qwen2: Path, tmp_path: Path) -> None:
    """One part in twenty off, in one tensor of the Megatron checkpoint."""
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_qwen2, wrong)
    tensors = load_file(tiny_qwen2 / "model.safetensors")
    tensors[tensor] = tensors[tensor] * (1 + 0.05 * torch.randn(tensors[tensor].shape))
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    (checkpoint,) = run_ranks(1, _convert, wrong, tmp_path / "run")
    fp32, _ = run_ranks(1, _verified, tiny_qwen2, checkpoint)[0]
    assert fp32.first_departure == fp32.worst_check().place == place
    assert not fp32.worst_check().departure <= fp32.worst_check().limit
    passed = [check.passed for check in fp32.checks]
    assert passed.index(False) == [check.place for check in fp32.checks].index(place)


def _precisions(folder: Path) -> tuple[set[str], str]:
    """What products of float32 are computed in while models run, and after; a container asked for TF32."""
    distributed.initialize()
    torch.set_float32_matmul_precision("high")
    seen: set[str] = set()
    model = read_hf_model(folder)
    verify(model, None, TOKENS, ["fp32"], lambda _: seen.add(torch.get_float32_matmul_precision()))
    return seen, torch.get_float32_matmul_precision()


def test_products_are_exact(tiny_llama: Path) -> None:
    assert run_ranks(1, _precisions, tiny_llama)[0] == ({"highest"}, "high")


def test_the_printed_verdict_names_number_and_limit(tiny_qwen2: Path, tmp_path: Path) -> None:
    (fp32, bf16) = run_ranks(1, _verified, tiny_qwen2, None)[0]
    assert sentence(fp32).startswith("fp32: the same but for rounding (nearest to its limit, ")
    assert "× the distance of transformers' own bf16 from its fp32" in sentence(bf16)
    wrong = [*bf16.checks]
    wrong[2] = Check("layer 1", 3e-2, 2e-2)
    wrong[4] = Check("layer 3", math.nan, 2e-2)
    text = sentence(dataclasses.replace(bf16, checks=wrong, first_departure="layer 1"))
    assert text.startswith(
        "bf16: departs first at: layer 1 (hidden states after layer 1: 3.000e-02 from transformers in fp32, "
        "limit 2.000e-02; 2 of 7 limits exceeded)"
    )
    alone = [*bf16.checks[:-1], Check(LOGITS, 0.3, 0.2)]
    text = sentence(dataclasses.replace(bf16, checks=alone, first_departure=LOGITS))
    assert "(log-probabilities: 3.000e-01 from transformers in fp32, limit 2.000e-01)" in text
    exact = [Check("embedding", 0.0, 0.0), Check(LOGITS, 0.1, 0.2)]  # a bf16 folder's embedding is exact
    assert "log-probabilities: 1.000e-01" in sentence(dataclasses.replace(bf16, checks=exact))


@pytest.mark.parametrize("rows", [300, 352])
def test_rows_that_differ_from_the_vocabulary(rows: int, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(tiny_llama / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([embedding, embedding])[:rows].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = rf"embed_tokens.weight has shape \({rows}, 96\), expected \(331, 96\), by vocab_size in config"
    with pytest.raises(UserError, match=message):
        run_ranks(1, _verified, folder, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    if rows > 331:  # padded: the tokenizer's ids all have rows
        assert run_ranks(1, _verified, folder, None)[0][0].first_departure is None
    else:
        with pytest.raises(UserError, match=rf"makes id {max(TOKENS)} of the text, .* has vocab_size 300"):
            run_ranks(1, _verified, folder, None)


def test_a_checkpoint_of_another_vocabulary(tiny_llama: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", vocab_size=400)
    (checkpoint,) = run_ranks(1, _convert, tiny_llama, tmp_path / "run")
    with pytest.raises(UserError, match=r"an embedding of 331 rows, 331 of them .* has vocab_size 400: they"):
        run_ranks(1, _verified, other, checkpoint)
    (checkpoint,) = run_ranks(1, _convert, other, tmp_path / "other_run")
    with pytest.raises(UserError, match=r"an embedding of 400 rows, 400 of them .* has vocab_size 331: they"):
        run_ranks(1, _verified, tiny_llama, checkpoint)


def test_texts_that_do_not_fit(tiny_llama: Path) -> None:
    for tokens in ([5], [5] * 1025):
        with pytest.raises(UserError, match=rf"the text has {len(tokens)} tokens; it needs 2 to 1024, the"):
            run_ranks(1, _verified, tiny_llama, None, tokens)


def test_inspect_a_model_folder(tiny_qwen2: Path, tmp_path: Path) -> None:
    found = inspect_hf(tiny_qwen2)
    tensors = load_file(tiny_qwen2 / "model.safetensors").values()
    numbers = sum(tensor.numel() for tensor in tensors)
    expected = {
        "family": "qwen2", "parameters": numbers, "dtypes": {"float32": numbers}, "tensors": len(tensors),
        "layers": 4,
        "query_groups": 2, "vocabulary": 331, "tied_embeddings": False, "tokenizer": "tokenizer.json",
        "files": 1, "problems": None, "bytes": (tiny_qwen2 / "model.safetensors").stat().st_size,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    lacking = tmp_path / "lacking"
    shutil.copytree(tiny_qwen2, lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    (lacking / "tokenizer.json").unlink()
    found = inspect_hf(lacking)
    assert found["problems"] == f"{lacking}: missing lm_head.weight"
    assert found["tokenizer"] == "none"


def test_inspect_a_run(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "train.jsonl", 12)
    settings: dict[str, Any] = {
        "tensor_model_parallel_size": 2, "save_optim": True, "save_interval": 1,
        "objective": "GeneralFamily-8",
    }  # fmt: skip
    train(2, config_for(tmp_path / "run", tiny_llama, data, train_iters=2, **settings))
    found = inspect_megatron(tmp_path / "run", 1)
    assert found["step"] == 1
    assert found["steps"] == {1: "whole", 2: "whole"}
    assert found["layout"] == {"tensor_model_parallel_size": 2}
    assert found["objective"] == "GeneralFamily-8"
    assert found["optimizer"] is True
    assert found["vocabulary_padding"] == 1  # 331 rows on two ranks
    hf = inspect_hf(tiny_llama)
    assert found["parameters"] == hf["parameters"] + 96  # and so the padding
    assert json.dumps(found)
    file = next((tmp_path / "run" / "iter_0000001").glob("*.distcp"))
    file.write_bytes(b"")
    assert inspect_megatron(tmp_path / "run")["steps"][1].startswith("damaged: checkpoint ")
    plain = tmp_path / "run" / "iter_0000002"
    shutil.rmtree(plain / "hf")
    (plain / "train_config.yaml").unlink()
    (plain / "manifest.json").unlink()
    found = inspect_megatron(tmp_path / "run")
    assert found["family"] == "unknown: it carries no hf/config.json"
    assert found["dtypes"] == {"float32": hf["parameters"] + 96}
