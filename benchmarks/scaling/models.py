"""The sizes of published models, as their config.json files have them."""

from __future__ import annotations

from typing import Any, NamedTuple

from megatron_probsft.models.families.llama import FAMILY as LLAMA
from megatron_probsft.models.families.qwen2 import FAMILY as QWEN2
from megatron_probsft.models.families.qwen3_moe import FAMILY as QWEN3_MOE
from megatron_probsft.models.family import Experts, Family, ModelShape


class Model(NamedTuple):
    """A model that needs no files to be counted."""

    name: str
    family: Family
    shape: ModelShape


def _model(name: str, family: Family, sizes: tuple[int, ...], **more: Any) -> Model:
    """sizes: layers, hidden size, MLP columns, query heads, key heads, vocabulary."""
    layers, hidden, ffn, heads, groups, vocab = sizes
    usual: dict[str, Any] = {"head_dim": hidden // heads, "tied_embeddings": False, "norm_epsilon": 1e-5}
    return Model(
        name, family,
        ModelShape(
            num_layers=layers, hidden_size=hidden, ffn_hidden_size=ffn, num_attention_heads=heads,
            num_query_groups=groups, vocab_size=vocab, max_position_embeddings=131072, rope_frequencies=(),
            **(usual | more),
        ),
    )  # fmt: skip


_MODELS = [
    _model("Llama-2-7B", LLAMA, (32, 4096, 11008, 32, 32, 32000)),
    _model("Llama-2-13B", LLAMA, (40, 5120, 13824, 40, 40, 32000)),
    _model("Llama-2-70B", LLAMA, (80, 8192, 28672, 64, 8, 32000)),
    _model("Llama-3.1-8B", LLAMA, (32, 4096, 14336, 32, 8, 128256)),
    _model("Llama-3.1-70B", LLAMA, (80, 8192, 28672, 64, 8, 128256)),
    _model("Llama-3.1-405B", LLAMA, (126, 16384, 53248, 128, 8, 128256)),
    _model("Qwen2.5-1.5B", QWEN2, (28, 1536, 8960, 12, 2, 151936), tied_embeddings=True, qkv_bias=True),
    _model("Qwen2.5-7B", QWEN2, (28, 3584, 18944, 28, 4, 152064), qkv_bias=True),
    _model("Qwen3-30B-A3B", QWEN3_MOE, (48, 2048, 768, 32, 4, 151936), head_dim=128, qk_norm=True,
           experts=Experts(count=128, per_token=8, ffn_hidden_size=768, normalized=True)),
]  # fmt: skip
MODELS: dict[str, Model] = {model.name: model for model in _MODELS}
