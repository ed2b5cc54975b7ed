"""Three sizes of the suite: `--size fast` for work, `test` (the default) for a commit, `all` for a release.

`fast` runs a row or two of each table and nothing end-to-end, `test` every feature and a fair choice of each
table, `all` everything. Which rows the smaller sizes keep is said beside the table, by `rows`; a slow test
without a table that `fast` leaves out bears `@pytest.mark.size("test")`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

SIZES = ("fast", "test", "all")
END_TO_END = Path(__file__).parents[1] / "end_to_end"


def rows(table: Iterable[Any], *, fast: Collection[Any], rare: Collection[Any] = ()) -> list[Any]:
    """Returns what `pytest.mark.parametrize` takes: each row marked with the smallest size that runs it.

    fast: the rows that every size runs.
    rare: those that only `all` runs. The others run in `test`.

    A row of several parameters is a tuple. Where a test has several tables, its size is the largest of its
    rows' sizes.
    """
    every = list(table)
    for row in [*fast, *rare]:
        if row not in every:
            raise ValueError(f"the table has no row {row!r}")
    if all(row in rare for row in every):
        raise ValueError("no feature is tested in `all` only: leave `test` a row")

    def parameters(row: Any) -> Any:
        size = "all" if row in rare else "fast" if row in fast else "test"
        return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.size(size))

    return [parameters(row) for row in every]


def size_of(item: pytest.Item) -> str:
    """Returns the smallest size that runs this test."""
    sizes = [marker.args[0] for marker in item.iter_markers("size")]
    if END_TO_END in item.path.parents:
        sizes.append("test")
    return max(sizes, key=SIZES.index, default="fast")


def keep(size: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests that this size leaves out away from `items`."""
    kept = SIZES[: SIZES.index(size) + 1]
    left_out = [item for item in items if size_of(item) not in kept]
    if left_out:
        items[:] = [item for item in items if size_of(item) in kept]
        config.hook.pytest_deselected(items=left_out)
