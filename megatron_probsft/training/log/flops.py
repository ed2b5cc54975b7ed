"""Model FLOPs of a step, counted from its samples' lengths, and what devices could do at best."""

from __future__ import annotations

import numpy as np

from megatron_probsft.models.family import ModelShape
from megatron_probsft.training.throughput.cards import bf16_peak


def model_flops(shape: ModelShape, lengths: np.ndarray, supervised_tokens: int) -> float:
    """Return the floating-point operations that one forward and backward pass needs, over all ranks.

    The convention of Megatron's `num_floating_point_operations` for packed sequences: 2 per multiply and
    add, backward twice the forward, each sample's attention L² with the causal half taken off (PaLM,
    arXiv 2204.02311 appendix B, takes none off), no padding and no recomputation; norms, activations and the
    embedding's look-up are left out. Unlike there the head counts for supervised tokens only: the others
    need none.

    Args:
        lengths: `[samples]` tokens of each sample that go through the model.
    """
    ffn = shape.ffn_hidden_size
    if shape.experts:  # only those that a token goes to, and the router
        ffn = shape.experts.per_token * shape.experts.ffn_hidden_size + shape.experts.count / 3
    layer = shape.hidden_size * (2 * shape.query_size + 2 * shape.key_size + 3 * ffn)
    squares = float(np.square(lengths.astype(np.float64)).sum())
    multiplications = (
        shape.num_layers * (layer * float(lengths.sum()) + shape.query_size * squares)
        + shape.hidden_size * shape.vocab_size * supervised_tokens
    )
    return 3 * 2 * multiplications


def peak_tflops(device: str) -> float | None:
    """Return a device's dense bf16 TFLOP/s by its name (`torch.cuda.get_device_name()`), if it is known."""
    peak = bf16_peak(device)
    return None if peak is None else peak / 1e12
