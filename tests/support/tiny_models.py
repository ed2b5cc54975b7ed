"""Small random Hugging Face models and a tokenizer, built by transformers and tokenizers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 331  # prime: not divisible by any TP size


def save_tiny_model(
    folder: Path,
    *,
    family: str = "llama",
    tied: bool = True,
    layers: int = 4,
    heads: int = 6,
    groups: int = 6,
    head_dim: int = 16,
    vocab_size: int = VOCAB_SIZE,
    initializer_range: float = 0.15,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A random model with its tokenizer: weights large enough that probabilities are far from uniform."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(  # noqa: C408
        vocab_size=vocab_size, hidden_size=heads * head_dim, intermediate_size=12 * heads,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        max_position_embeddings=1024, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        initializer_range=initializer_range,
        dtype=dtype,
    )  # fmt: skip
    model: Any = (  # a decorator hides the type of `to`
        LlamaForCausalLM(LlamaConfig(**sizes))
        if family == "llama"
        else Qwen2ForCausalLM(Qwen2Config(**sizes))
    )
    return save_spread(model, folder, dtype)


def save_spread(model: Any, folder: Path, dtype: torch.dtype) -> Path:
    """Saves a new model with its tokenizer; its norms, biases and experts get values that differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
            if ".experts." in name or name.endswith("gate.weight"):
                parameter.normal_(0, model.config.initializer_range)
    model.to(dtype).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


def save_tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML, where pad is EOS, as in SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 8,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["user assistant what is the sum of one and two? it is three."] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )
    fast.save_pretrained(folder)
    return fast
