"""A range of a flattened tensor, cut into rectangles, is that range again."""

from __future__ import annotations

import pytest
import torch

from megatron_probsft.checkpoint.megatron.rectangles import rectangles

SHAPES = [(), (7,), (1, 5), (5, 1), (4, 6), (3, 4, 5), (1, 3, 4), (2, 1, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_range_is_covered_once_and_in_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    flat = whole.flatten()
    for start in range(flat.numel() + 1):
        for end in range(start, flat.numel() + 1):
            parts = list(rectangles(shape, start, end))
            assert len(parts) <= max(2 * len(shape) - 1, 1)
            found = []
            for part in parts:
                inside = tuple(
                    slice(at, at + length) for at, length in zip(part.offset, part.shape, strict=True)
                )
                assert torch.equal(whole[inside].flatten(), flat[part.start : part.end])
                found += whole[inside].flatten().tolist()
            assert found == list(range(start, end))
