"""What the project knows of a model family: how its Hugging Face config and weights map to Megatron-Core.

A family is one small file in `families/` with a config mapping and a table of `WeightRule`s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Layout = Literal["replicated", "row", "vocab", "qkv", "gated"]
"""How a Megatron parameter is cut over tensor-parallel ranks, and made of its Hugging Face sources.

replicated  one source, whole on every rank
row         one source, cut along dim 1
vocab       one source, cut along dim 0 after padding with zero rows to the padded vocabulary
qkv         sources q, k, v; rows by query group, [q of group 0, k 0, v 0, q of group 1, …]; cut by group
gated       sources gate, up; each cut along dim 0, then stacked [gate shard, up shard]
"""


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter and its Hugging Face sources.

    `{layer}` is the global layer number, `{expert}` the global expert's, both from 0.
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    shapes: tuple[tuple[int, ...], ...]
    """Of the sources, in the order of `hf`."""


@dataclass(frozen=True)
class Experts:
    """Feed-forward layers that are mixtures: a router sends each token to `per_token` of `count` experts."""

    count: int
    per_token: int
    ffn_hidden_size: int
    normalized: bool
    """Whether the chosen experts' probabilities are scaled to sum to 1."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that both sides share; all in elements."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Of dense layers; of a mixture's experts where all layers are mixtures."""
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    """Longest sequence on which every token attends to all before it: the context, or a sliding window."""
    tied_embeddings: bool
    rope_frequencies: tuple[float, ...]
    """`[head_dim / 2]`, radians per position, scaling included."""
    norm_epsilon: float
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head's query and key before the rotary embedding."""
    experts: Experts | None = None


@dataclass(frozen=True)
class Family:
    """A model family: `architectures` are the names in config.json that it serves."""

    name: str
    architectures: tuple[str, ...]
    shape: Callable[[PretrainedConfig], ModelShape]
    rules: Callable[[ModelShape], list[WeightRule]]
