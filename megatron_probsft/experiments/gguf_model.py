"""Turns SmolLM2's GGUF file into the files of a Hugging Face folder: float32 weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

_CONTROL = 3  # GGUF's token type for special tokens
_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_hf_files(file: Path, part: Path) -> None:
    """Read the GGUF file and write into the folder `part`, which exists."""
    reader = gguf.GGUFReader(file)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    save_file(_weights(reader, meta), part / "model.safetensors", metadata={"format": "pt"})
    _config(meta).save_pretrained(part)
    ids = {key: meta[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")}
    GenerationConfig(
        bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["eos"]
    ).save_pretrained(part)
    _tokenizer(meta).save_pretrained(part)


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
