"""A model family: its Hugging Face configs read as sizes, its weights as rows of names on both sides.

A family is one small file in `families/` that makes a `Family`. Most take the sizes and the rows that
`decoder.py` has; one whose layers are built otherwise changes Megatron-Core's layer spec (`Family.layers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from megatron.core.models.backends import BackendSpecProvider
    from megatron.core.transformer.spec_utils import ModuleSpec
    from transformers import PretrainedConfig

Cut = Literal["replicated", "row", "vocab", "qkv", "gated"]
"""The way from Hugging Face tensors to a Megatron parameter that is cut over tensor-parallel ranks.

replicated  one tensor, whole on every rank
row         one tensor, cut along dim 1
vocab       one tensor, cut along dim 0 after padding with zero rows to the padded vocabulary
qkv         tensors q, k, v; rows by query group, [q of group 0, k 0, v 0, q of group 1, …]; cut by group
gated       tensors gate, up; each cut along dim 0, then stacked [gate shard, up shard]
"""

_LAYER, _HF_LAYER = "decoder.layers.{layer}.", "model.layers.{layer}."


class Row(NamedTuple):
    """A line of a family's table: a Megatron parameter and the Hugging Face tensors that it is made of.

    `{expert}` in a name is the global number of a mixture's expert, from 0.
    """

    megatron: str
    hf: str | tuple[str, ...]
    cut: Cut
    size: Callable[[ModelShape], tuple[int, ...]] | None = None
    """The shape of a tensor that Megatron-Core's own layers do not have; None: `_shapes` derives it."""


@dataclass(frozen=True)
class WeightRule:
    """A row with full names, `{layer}` the global number of the layer from 0, and the tensors' shapes."""

    megatron: str
    hf: tuple[str, ...]
    cut: Cut
    shapes: tuple[tuple[int, ...], ...]
    """One for each name in `hf`."""


@dataclass(frozen=True)
class Experts:
    """Feed-forward layers that are mixtures: a router sends each token to `per_token` of `count` experts."""

    count: int
    per_token: int
    ffn_hidden_size: int
    normalized: bool
    """True: the chosen experts' probabilities are scaled to sum to 1."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that both sides share; all in elements."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """The dense layers' width; the experts' where all layers are mixtures."""
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
    """Query and key have norms before the rotary embedding: over each head, or as `Family.layers` says."""
    experts: Experts | None = None

    @property
    def query_size(self) -> int:
        """All heads of the query together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """All heads of the key, or of the value, together."""
        return self.num_query_groups * self.head_dim


OUTER_ROWS = (
    # Megatron-Core                           Hugging Face                   cut
    Row("embedding.word_embeddings.weight",  "model.embed_tokens.weight",   "vocab"),
    Row("decoder.final_layernorm.weight",    "model.norm.weight",           "replicated"),
    Row("output_layer.weight",               "lm_head.weight",              "vocab"),
)  # fmt: skip
_HEAD = "output_layer.weight"


@dataclass(frozen=True)
class Family:
    """A model family, as its file describes it."""

    name: str
    architectures: tuple[str, ...]
    """The names in config.json that it serves."""
    shape: Callable[[PretrainedConfig], ModelShape]
    layer_rows: Sequence[Row]
    """The weights of a layer, their names without `decoder.layers.N.` and `model.layers.N.`."""
    outer_rows: Sequence[Row] = OUTER_ROWS
    """The weights outside of the layers. That of the head is left out where embeddings are tied."""
    layers: Callable[[ModuleSpec, BackendSpecProvider], ModuleSpec] | None = None
    """Changes the spec of every layer; None: Megatron-Core's layers are the model's.

    It is given a spec that it may change in place, and the backend whose classes the spec is made of: local
    layers on a CPU or plain CUDA (`local_layers.LocalBackend`), or Transformer Engine's. The backend's
    `column_parallel_linear()`, `row_parallel_linear()` and `layer_norm()` give classes of the same kind. A
    module of its own needs a row for each parameter; it finds the layer's number among its arguments.
    """

    def rules(self, shape: ModelShape) -> list[WeightRule]:
        """One rule for each row that a model of this shape has."""
        outer = [
            WeightRule(row.megatron, _names(row), row.cut, _shapes(row, shape))
            for row in self.outer_rows
            if not (row.megatron == _HEAD and shape.tied_embeddings)
        ]
        return outer + [
            WeightRule(
                _LAYER + row.megatron,
                tuple(_HF_LAYER + name for name in _names(row)),
                row.cut,
                _shapes(row, shape),
            )
            for row in self.layer_rows
        ]


def _names(row: Row) -> tuple[str, ...]:
    return (row.hf,) if isinstance(row.hf, str) else row.hf


def _shapes(row: Row, shape: ModelShape) -> tuple[tuple[int, ...], ...]:
    """The shapes of a row's Hugging Face tensors, which the cut and the model's sizes determine."""
    hidden, ffn, experts = shape.hidden_size, shape.ffn_hidden_size, 0
    if shape.experts:
        experts = shape.experts.count
        ffn = shape.experts.ffn_hidden_size if "{expert}" in row.megatron else ffn
    if row.size:
        return tuple(row.size(shape) for _ in _names(row))
    if row.cut == "vocab":
        return ((shape.vocab_size, hidden),)
    if row.cut == "qkv":
        width = () if row.megatron.endswith("bias") else (hidden,)
        return (shape.query_size, *width), (shape.key_size, *width), (shape.key_size, *width)
    if row.cut == "gated":
        return (ffn, hidden), (ffn, hidden)
    if row.cut == "row":
        return ((hidden, shape.query_size if row.megatron.startswith("self_attention.") else ffn),)
    module = row.megatron.split(".")[-2]
    known = {"router": (experts, hidden), "q_layernorm": (shape.head_dim,), "k_layernorm": (shape.head_dim,)}
    return (known.get(module, (hidden,)),)
