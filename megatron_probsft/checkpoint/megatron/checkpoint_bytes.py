"""Memory that a save or a resume takes for a while, beyond what training holds anyway: arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.checkpoint.megatron.torch_dist_reader import PIECE_BYTES


@dataclass(frozen=True)
class OwnBytes:
    """The bytes of what a checkpoint holds, as they lie on one rank."""

    weights: int
    """This rank's weights."""
    largest_weight: int
    """The largest of them."""
    optimizer: int
    """The optimizer's states that this rank holds; in float32, main weights included."""
    largest_state: int
    """The largest of these: of a distributed optimizer, a rank's part of one parameter."""


def save_peak_bytes(
    own: OwnBytes, data_parallel: int, *, distributed_optimizer: bool, in_background: bool, on_gpu: bool
) -> int:
    """Return the most bytes of the host that a save takes on one rank; a GPU's memory it does not take.

    In the background (--async-save) it is a copy of all that this rank writes: its own optimizer states, and
    its share of what the `data_parallel` ranks (context-parallel ones included) have in common, which
    Megatron-Core gives out by whole tensors. In the foreground it is one tensor of a GPU.
    """
    if not in_background:
        return max(own.largest_weight, own.largest_state) if on_gpu else 0
    weights = min(own.weights, own.weights // data_parallel + own.largest_weight)
    if distributed_optimizer or data_parallel == 1:
        return weights + own.optimizer
    return weights + min(own.optimizer, own.optimizer // data_parallel + own.largest_state)


def resume_peak_bytes(own: OwnBytes) -> int:
    """Return the most bytes of the host that a resume takes on one rank; a GPU's memory it does not take.

    Weights are read one stored tensor at a time, optimizer states in pieces, both into their places.
    """
    return max(own.largest_weight, PIECE_BYTES)
