"""Configs whose mathematics is not ours: one line that names the field and what is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.inputs import find_model
from megatron_probsft.training.start.problems import Problems

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "model architecture 'GemmaForCausalLM' is not supported; supported: LlamaForCausalLM, ": (
        "llama", {"architectures": ["GemmaForCausalLM"]}),
    "model architecture '(none)' is not supported": ("llama", {"architectures": None}),
    "hidden_act 'gelu' is not supported (supported: 'silu')": ("llama", {"hidden_act": "gelu"}),
    "mlp_bias=True in config.json is not supported (supported: MLPs without bias)": (
        "llama", {"mlp_bias": True}),
    "attention_bias=True in config.json is not supported": ("qwen3", {"attention_bias": True}),
    "attn_logit_softcapping=50.0 in config.json is not supported (supported: attention without soft caps)": (
        "llama", {"attn_logit_softcapping": 50.0}),
    "final_logit_softcapping=30.0 in config.json is not supported": (
        "mistral", {"final_logit_softcapping": 30.0}),
    "logit_scale=0.25 in config.json is not supported": ("llama", {"logit_scale": 0.25}),
    "attention_multiplier=0.1 in config.json is not supported": ("llama", {"attention_multiplier": 0.1}),
    "residual_multiplier=0.2 in config.json is not supported": ("qwen2", {"residual_multiplier": 0.2}),
    "embedding_multiplier=12.0 in config.json is not supported": ("llama", {"embedding_multiplier": 12.0}),
    "partial_rotary_factor=0.25 ": ("qwen3", {"partial_rotary_factor": 0.25}),
    "pretraining_tp=2 in config.json is not supported (supported: 1, ": ("llama", {"pretraining_tp": 2}),
    "quantization_config={": ("llama", {"quantization_config": {"quant_method": "fp8"}}),
    "rope scaling 'yarn' is not supported (supported: none, linear, llama3): {'rope_type': 'yarn', ": (
        "qwen2", {"rope_parameters": YARN}),
    "rope scaling 'dynamic' is not supported": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "rope scaling 'longrope' is not supported": (
        "mistral", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0,
                    "short_factor": [1.0], "long_factor": [2.0]}}),
    "partial_rotary_factor=0.5 is not supported": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "decoder_sparse_step=2, mlp_only_layers=[]: dense layers among mixtures are not supported": (
        "qwen3_moe", {"decoder_sparse_step": 2}),
    "decoder_sparse_step=1, mlp_only_layers=[0]: dense layers among mixtures are not supported": (
        "qwen3_moe", {"mlp_only_layers": [0]}),
}  # fmt: skip
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip


def _write(folder: Path, kind: str, changes: dict[str, Any]) -> Path:
    config = AutoConfig.for_model(kind).to_dict() | {"architectures": [ARCHITECTURES[kind]], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("message", CASES)
def test_every_refusal(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_hf_model(_write(tmp_path, *CASES[message]))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_transformers_itself_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is refused by transformers: .*layer_types") as caught:
        read_hf_model(_write(tmp_path, "qwen2", {"layer_types": ["full_attention"]}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "positions"),
    [
        ("mistral", {"sliding_window": 128, "max_position_embeddings": 512}, 128),
        ("mistral", {"sliding_window": None, "max_position_embeddings": 512}, 512),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 128, "max_position_embeddings": 512}, 512),
    ],
    ids=str,
)
def test_a_sliding_window_limits_the_length_of_samples(
    kind: str, changes: dict[str, Any], positions: int, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    folder = str(_write(tmp_path / "hf", kind, changes))

    def check(length: int) -> HFModel:
        config = TrainConfig.of(hf_model=folder, save=str(tmp_path / "run"), seq_length=length)
        return find_model(config, Problems()).hf

    assert check(positions).shape.max_position_embeddings == positions
    message = (
        rf"--seq-length {positions + 1} is more than the model's {positions} positions \(its context, or"
    )
    with pytest.raises(UserError, match=message):
        check(positions + 1)
