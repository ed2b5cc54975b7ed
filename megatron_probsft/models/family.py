"""A model family: its Hugging Face config read as sizes, and a table of its weights' names on both sides.

A family is one small file in `families/` that makes a `Family`. Most take the sizes and the tables that
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


class Weight(NamedTuple):
    """A line of a family's table: a Megatron parameter, and the Hugging Face tensors that it is made of.

    `{expert}` in a name is the global number of a mixture's expert, from 0.
    """

    megatron: str
    hf: str | tuple[str, ...]
    cut: Cut
    size: Callable[[ModelShape], tuple[int, ...]] | None = None
    """The shape of a tensor that Megatron-Core's own layers do not have; None: `_shapes` derives it."""


@dataclass(frozen=True)
class WeightRule:
    """A `Weight` of a model of known sizes, under full names. `{layer}` is the layer's number, from 0."""

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


OUTER_WEIGHTS = (
    # Megatron-Core                              Hugging Face                   cut
    Weight("embedding.word_embeddings.weight",  "model.embed_tokens.weight",   "vocab"),
    Weight("decoder.final_layernorm.weight",    "model.norm.weight",           "replicated"),
    Weight("output_layer.weight",               "lm_head.weight",              "vocab"),
)  # fmt: skip
_HEAD = "output_layer.weight"


@dataclass(frozen=True)
class Family:
    """A model family, as its file describes it."""

    name: str
    architectures: tuple[str, ...]
    """The names in config.json that it serves."""
    shape: Callable[[PretrainedConfig], ModelShape]
    """Reads the sizes from a config; raises UserError where the model's mathematics would be another."""
    layer_weights: Sequence[Weight]
    """The weights of a layer, their names without `decoder.layers.N.` and `model.layers.N.`."""
    outer_weights: Sequence[Weight] = OUTER_WEIGHTS
    """The weights outside of the layers; the head's is left out where embeddings are tied."""
    layers: Callable[[ModuleSpec, BackendSpecProvider], ModuleSpec] | None = None
    """Changes the spec of every layer; None: Megatron-Core's layers are the model's.

    It is given a spec that it may change in place, and the backend whose classes the spec is made of: local
    layers on a CPU or plain CUDA (`local_layers.LocalBackend`), or Transformer Engine's. The backend's
    `column_parallel_linear()`, `row_parallel_linear()` and `layer_norm()` give classes of the same kind. A
    module of the family's own needs a line in the table for each parameter.
    """

    def rules(self, shape: ModelShape) -> list[WeightRule]:
        """The rules of the weights that a model of this shape has."""
        outer = [
            _rule(weight, shape, "", "")
            for weight in self.outer_weights
            if not (weight.megatron == _HEAD and shape.tied_embeddings)
        ]
        return outer + [_rule(weight, shape, _LAYER, _HF_LAYER) for weight in self.layer_weights]


def _rule(weight: Weight, shape: ModelShape, prefix: str, hf_prefix: str) -> WeightRule:
    names = (weight.hf,) if isinstance(weight.hf, str) else weight.hf
    shapes = (weight.size(shape),) * len(names) if weight.size else _shapes(weight, shape)
    return WeightRule(prefix + weight.megatron, tuple(hf_prefix + name for name in names), weight.cut, shapes)


def _shapes(weight: Weight, shape: ModelShape) -> tuple[tuple[int, ...], ...]:
    """The shapes of the Hugging Face tensors, which follow from the cut and the model's sizes."""
    hidden, ffn, experts = shape.hidden_size, shape.ffn_hidden_size, 0
    if shape.experts:
        experts = shape.experts.count
        ffn = shape.experts.ffn_hidden_size if "{expert}" in weight.megatron else ffn
    if weight.cut == "vocab":
        return ((shape.vocab_size, hidden),)
    if weight.cut == "qkv":
        width = () if weight.megatron.endswith("bias") else (hidden,)
        return (shape.query_size, *width), (shape.key_size, *width), (shape.key_size, *width)
    if weight.cut == "gated":
        return (ffn, hidden), (ffn, hidden)
    module = weight.megatron.split(".")[-2]
    if weight.cut == "row":
        return ((hidden, shape.query_size if module == "linear_proj" else ffn),)
    whole = {"router": (experts, hidden), "q_layernorm": (shape.head_dim,), "k_layernorm": (shape.head_dim,)}
    return (whole.get(module, (hidden,)),)  # else a norm's
