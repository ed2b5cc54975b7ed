"""Every supported family in miniature, with random weights, built by transformers: one entry each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_models import VOCAB_SIZE, save_spread

# (model_type, what differs from _COMMON). Sizes are real configs' proportions, small.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("llama", {"num_key_value_heads": 8, "tie_word_embeddings": False}),
    "Llama 3.1": (
        "llama",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "Llama 3.2": (
        "llama",
        {
            "num_key_value_heads": 2, "head_dim": 32,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
    ),
    "SmolLM2": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96}),
    "DeepSeek-LLM": ("llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "DeepSeek-Coder": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    ),
    "Mistral": ("mistral", {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": None}),
    "Qwen2.5": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "Qwen2.5-Math": ("qwen2", {"tie_word_embeddings": False, "num_attention_heads": 16}),
    "Qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Mixtral": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False,
         "sliding_window": None},
    ),
    "Qwen3-MoE": (
        "qwen3_moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 32,
         "norm_topk_prob": True, "tie_word_embeddings": False},
    ),
    "Qwen3-MoE, probabilities as they are": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": False},
    ),
}  # fmt: skip
# Every family tied and untied, with 1, 3 and 8 query heads to a key's, as transformers initialises models.
_HEADS = {1: (8, 8, 64), 3: (6, 2, 96), 8: (16, 2, 128)}  # heads, key/value heads, hidden size
for _kind, _more in {
    "llama": {"rope_parameters": CASES["Llama 3.1"][1]["rope_parameters"]},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mixtral": CASES["Mixtral"][1],
    "qwen3_moe": CASES["Qwen3-MoE"][1],
}.items():
    for (_ratio, (_heads, _groups, _hidden)), _tied in zip(_HEADS.items(), (True, False, True), strict=True):
        CASES[f"{_kind}, GQA {_ratio}, {'tied' if _tied else 'untied'}"] = (
            _kind,
            {**_more, "num_attention_heads": _heads, "num_key_value_heads": _groups, "hidden_size": _hidden,
             "tie_word_embeddings": _tied, "initializer_range": 0.02},
        )  # fmt: skip
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "tie_word_embeddings": True, "initializer_range": 0.15, "rms_norm_eps": 1e-5,
    "pad_token_id": None,  # transformers gives the row of a padding token no gradient
}  # fmt: skip


def save_tiny_family(folder: Path, case: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A model of `CASES` with its tokenizer."""
    torch.manual_seed(len(case))
    kind, differences = CASES[case]
    return save_tiny(folder, kind, dtype=dtype, **(differences | changes))


def save_tiny(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, **differences: Any) -> Path:
    """A model of a transformers type; weights so large that probabilities are far from uniform."""
    config = AutoConfig.for_model(kind, **(_COMMON | differences), dtype=dtype)
    return save_spread(AutoModelForCausalLM.from_config(config), folder, dtype)
