"""Ranges of a flattened tensor as rectangular blocks of the tensor itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rectangle:
    """A rectangular block of a tensor whose numbers lie end to end when the tensor is flattened."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    """The place of its first number in the flattened tensor."""

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape)


def rectangles(shape: tuple[int, ...], start: int, end: int) -> Iterator[Rectangle]:
    """Yield the fewest rectangles that hold the numbers `start` to `end` of a flattened tensor, in order.

    They are at most 2n − 1 for n dimensions: the rest of a row, whole rows, the beginning of a row.
    """
    if start >= end:
        return
    if len(shape) < 2:
        yield Rectangle((start,) * len(shape), (end - start,) * len(shape), start)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row  # the whole rows
    if first > last:
        yield from _in_row(shape, last, start, end)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield Rectangle((first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:]), first * row)
    yield from _in_row(shape, last, last * row, end)


def _in_row(shape: tuple[int, ...], number: int, start: int, end: int) -> Iterator[Rectangle]:
    before = number * math.prod(shape[1:])
    for part in rectangles(shape[1:], start - before, end - before):
        yield Rectangle((number, *part.offset), (1, *part.shape), part.start + before)
