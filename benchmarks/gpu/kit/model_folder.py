"""A random model's folder with a tokenizer of whole words, and chats whose lengths are like people's."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
QWEN2_5_1_5B: dict[str, Any] = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
"""config.json of Qwen/Qwen2.5-1.5B, as far as it names sizes."""
TINY: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 509, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
"""Two layers; heads of 64, which every attention kernel takes."""


@dataclass(frozen=True)
class Chats:
    """Prompts and responses of random words, their lengths log-normal: most are short, a few fill a pack."""

    count: int
    median: int
    longest: int
    words: int
    """The size of the vocabulary that words are drawn from."""

    def write(self, file: Path) -> Path:
        """Write JSON lines of `prompt` and `response`, the same ones each time."""
        generator = random.Random(1)

        def text(share: float) -> str:
            length = round(self.median * share * math.exp(generator.gauss(0, 0.8)))
            length = min(max(length, 1), self.longest // 2 - 8)
            return " ".join(f"w{generator.randrange(self.words)}" for _ in range(length))

        rows = ({"prompt": text(0.5), "response": text(0.5)} for _ in range(self.count))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file


def save_folder(folder: Path, sizes: dict[str, Any], *, weights: bool) -> Path:
    """Write config.json and a tokenizer, and the weights of a random model if asked for."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**sizes, architectures=["Qwen2ForCausalLM"], dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    _save_tokenizer(folder, words(sizes))
    if weights:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        for parameter in model.parameters():  # probabilities far from uniform
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.08)
        model.save_pretrained(folder)
    return folder


def words(sizes: dict[str, Any]) -> int:
    """Return how many words a model's tokenizer has, nearly as many as its vocabulary."""
    return sizes["vocab_size"] - 300


def _save_tokenizer(folder: Path, count: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    everything = [
        *special,
        "user",
        "assistant",
        "system",
        "[UNK]",
        *(f"w{number}" for number in range(count)),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(everything)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
