"""Memory per rank before anything large is built: parameters exactly, activations by what layers keep.

Weights, gradients and optimizer are counted as by Megatron-LM's `theoretical_memory_usage`, but for every
stage, uneven ones and float32 included. Activations follow arXiv 2205.05198 as there, but for gated MLPs,
grouped queries and layers without dropout whose attention keeps no scores: per token and layer the inputs
of two norms and of two column-parallel layers, q, k, v, the attention's output, and three MLP rows. Ours
adds the head: the supervised hidden states and one chunk of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_probsft.models.build import padded_vocab_size
from megatron_probsft.models.family import Family, ModelShape, WeightRule
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.vocab_parallel.head_parts import HeadOptions


@dataclass(frozen=True)
class StageMemory:
    """The bytes on each rank of one pipeline stage."""

    stage: int
    parameters: int
    """These are counted as numbers, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def parameter_count(family: Family, shape: ModelShape) -> int:
    """Return the parameters of the whole model: no padding of the vocabulary, tied embeddings once."""
    return sum(
        _numbers(rule) * (shape.num_layers if "{layer}" in rule.megatron else 1) * _copies(rule, shape)
        for rule in family.rules(shape)
    )


def stage_memory(
    config: TrainConfig, family: Family, shape: ModelShape, dp_size: int, micro_batches: int, pack_length: int
) -> list[StageMemory]:
    """Return an estimate per stage, for `micro_batches` per step of `pack_length` tokens on each rank."""
    element = 2 if config.precision.bf16 else 4
    layout = config.layout
    layers = stage_layers(layout, shape.num_layers)
    result = []
    for stage, count in enumerate(layers):
        is_last = stage == len(layers) - 1
        dense, experts = _parameters(layout, family, shape, count, is_first=stage == 0, is_last=is_last)
        parameters = dense + experts
        # AdamW: two moments, and float32 main weights where the weights are bfloat16.
        state = parameters * (12 if config.precision.bf16 else 8)
        if layout.use_distributed_optimizer:
            replicas = dp_size * layout.context_parallel_size
            shared = dense // replicas + experts * layout.expert_model_parallel_size // replicas
            state = shared * (12 if config.precision.bf16 else 8)
        chunks = layout.num_virtual_stages_per_pipeline_rank or 1
        in_flight = chunks_in_flight(layout, stage, micro_batches)
        tokens = pack_length // layout.context_parallel_size
        result.append(
            StageMemory(
                stage,
                parameters,
                weights=parameters * element,
                gradients=parameters * 4,
                optimizer=state,
                activations=in_flight * _activations(layout, shape, count // chunks, tokens) * element,
                head=_head(config, shape, tokens) * element if is_last else 0,
            )
        )
    return result


def chunks_in_flight(layout: LayoutSettings, stage: int, micro_batches: int) -> int:
    """Return how many chunks' activations of a micro-batch a stage holds at most.

    That is one chunk of layers for each that starts before the first one's gradient comes (arXiv 2104.04473).
    """
    after = layout.pipeline_model_parallel_size - stage - 1
    chunks = layout.num_virtual_stages_per_pipeline_rank or 1
    if chunks == 1:
        return min(after + 1, micro_batches)
    held = 2 * after + (chunks - 1) * layout.pipeline_model_parallel_size + 1
    return min(held, micro_batches * chunks)


def stage_layers(layout: LayoutSettings, layers: int) -> list[int]:
    """Return the number of layers on each pipeline stage."""
    stages = layout.pipeline_model_parallel_size
    counts: list[int | None] = [None] * stages
    if layout.decoder_first_pipeline_num_layers is not None:
        counts[0] = layout.decoder_first_pipeline_num_layers
    if layout.decoder_last_pipeline_num_layers is not None:
        counts[-1] = layout.decoder_last_pipeline_num_layers
    given = [count for count in counts if count is not None]
    each = (layers - sum(given)) // max(stages - len(given), 1)
    return [each if count is None else count for count in counts]


def recomputed_modules(layout: LayoutSettings) -> set[str]:
    """Return the parts of layers that --recompute-granularity selective computes again; with full, none."""
    if layout.recompute_granularity != "selective":
        return set()
    return {*layout.recompute_modules} or {"core_attn"}


def _parameters(
    layout: LayoutSettings, family: Family, shape: ModelShape, layers: int, *, is_first: bool, is_last: bool
) -> tuple[int, int]:
    """Return the parameters that all data-parallel ranks hold, and those of this rank's experts."""
    tp = layout.tensor_model_parallel_size
    vocabulary = padded_vocab_size(shape, tp, layout.make_vocab_size_divisible_by) * shape.hidden_size // tp
    total, experts = 0, 0
    for rule in family.rules(shape):
        if rule.cut == "vocab":
            continue
        here = layers if "{layer}" in rule.megatron else int(is_last)
        numbers = here * (_numbers(rule) if rule.cut == "replicated" else _numbers(rule) // tp)
        if "{expert}" in rule.megatron:
            experts += numbers * _copies(rule, shape) // layout.expert_model_parallel_size
        else:
            total += numbers
    own_head = is_last and not (is_first and shape.tied_embeddings)  # a copy of the tied embedding too
    return total + vocabulary * (int(is_first) + int(own_head)), experts


def _numbers(rule: WeightRule) -> int:
    """Return the numbers of one layer, and of one expert."""
    return sum(math.prod(tensor) for tensor in rule.shapes)


def _copies(rule: WeightRule, shape: ModelShape) -> int:
    return shape.experts.count if shape.experts and "{expert}" in rule.megatron else 1


def _activations(layout: LayoutSettings, shape: ModelShape, layers: int, tokens: int) -> int:
    """Return how many numbers are kept for one micro-batch."""
    tp = layout.tensor_model_parallel_size
    whole = tp if layout.sequence_parallel else 1
    attention = (2 * shape.query_size + 2 * shape.key_size) // tp
    mlp = 3 * shape.ffn_hidden_size // tp
    if shape.experts:  # each token is copied for each of its experts, on average evenly over the ranks
        mlp = shape.experts.per_token * (mlp + 2 * shape.hidden_size // whole)
    layer = tokens * (4 * shape.hidden_size // whole + attention + mlp)
    if layout.recompute_granularity == "selective":
        # core_attn keeps all: the attention's output is the next product's input, and there are no scores.
        modules, again = recomputed_modules(layout), 0
        if "layernorm" in modules:
            again += 2 * shape.hidden_size // whole
        if ("moe" in modules and shape.experts) or ("mlp" in modules and not shape.experts):
            again += mlp
        elif "moe_act" in modules and shape.experts:
            again += shape.experts.per_token * shape.experts.ffn_hidden_size // tp
        return layers * (layer - tokens * again) + tokens * again  # of one layer while it is computed again
    if layout.recompute_granularity is None:
        return layers * layer
    assert layout.recompute_num_layers is not None
    kept = tokens * shape.hidden_size // whole
    if layout.recompute_method == "block":
        again = min(layout.recompute_num_layers, layers)
        return again * kept + max(layers - again, 1) * layer
    groups_of_layers = -(-layers // layout.recompute_num_layers)
    return groups_of_layers * kept + min(layout.recompute_num_layers, layers) * layer


def _head(config: TrainConfig, shape: ModelShape, tokens: int) -> int:
    """Return how many numbers the head holds if every token is supervised."""
    objective, tp = config.objective, config.layout.tensor_model_parallel_size
    divisible_by = config.layout.make_vocab_size_divisible_by
    rows = (
        tokens
        if objective.loss_path == "materialized"
        else min(tokens, objective.loss_chunk_tokens or HeadOptions.chunk_tokens)
    )
    return tokens * shape.hidden_size + rows * padded_vocab_size(shape, tp, divisible_by) // tp
