"""Packs are cut over context parallelism; micro-batches without packing."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_probsft.data.packing import plan_unpacked
from megatron_probsft.models.context_parallel import local_positions


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_position_lies_on_one_rank_and_costs_are_equal(size: int) -> None:
    bounds = [0, 2 * size, 8 * size, 12 * size]
    parts = [local_positions(bounds, rank, size).tolist() for rank in range(size)]
    assert sorted(position for part in parts for position in part) == list(range(12 * size))
    # Causal attention costs a position its place in its sequence: equal sums on every rank.
    start_of = [max(bound for bound in bounds if bound <= position) for position in range(12 * size)]
    costs = {sum(position - start_of[position] for position in part) for part in parts}
    assert len(costs) == 1


def test_the_first_and_the_last_part_lie_together() -> None:
    assert local_positions([0, 8, 12], 0, 2).tolist() == [0, 1, 6, 7, 8, 11]
    assert local_positions([0, 8, 12], 1, 2).tolist() == [2, 3, 4, 5, 9, 10]


def test_unpacked_micro_batches() -> None:
    lengths = np.array([5, 9, 3, 7, 2, 6, 4])
    plan = plan_unpacked(lengths, dp_size=2, micro_batch_size=2, align=4)
    assert plan.packs == [[[0, 1], [2, 3]], [[4, 5], [6]]]
    assert plan.lengths == [[2 * 12, 2 * 8], [2 * 8, 4]]
    assert plan.pack_length == 2 * 12
    few = plan_unpacked(lengths[:2], dp_size=3, micro_batch_size=1)
    assert few.packs == [[[0]], [[1]], [[]]]
    assert few.lengths == [[5], [9], [1]]
