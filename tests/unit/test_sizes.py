"""Which rows of a table each size of the suite keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.sizes import END_TO_END, keep, rows

TABLE = {"a": 1, "b": 2, "c": 3}


def _sizes(parameters: list) -> list[str]:
    return [mark.args[0] for parameter in parameters for mark in parameter.marks]


def test_each_row_has_its_size() -> None:
    parameters = rows(TABLE, fast=["b"], rare=["c"])
    assert [parameter.values for parameter in parameters] == [("a",), ("b",), ("c",)]
    assert _sizes(parameters) == ["test", "fast", "all"]
    assert _sizes(rows(TABLE, fast=["b"])) == ["test", "fast", "test"]
    assert [parameter.values for parameter in rows([("a", 1)], fast=[("a", 1)])] == [("a", 1)]


def test_a_row_that_is_not_there_and_a_table_for_all_only_are_refused() -> None:
    with pytest.raises(ValueError, match="the table has no row 'd'"):
        rows(TABLE, fast=["d"])
    with pytest.raises(ValueError, match="no feature is tested in `all` only"):
        rows(TABLE, fast=[], rare=TABLE)


class _Config:
    """What `keep` asks of pytest's."""

    def __init__(self) -> None:
        self.left_out: list[Any] = []
        self.hook = SimpleNamespace(pytest_deselected=lambda items: self.left_out.extend(items))


def _item(name: str, *marks: str, folder: str = "unit") -> Any:
    return SimpleNamespace(
        name=name,
        path=END_TO_END.parent / folder / "test_it.py",
        iter_markers=lambda _: [pytest.mark.size(mark).mark for mark in marks],
    )


@pytest.mark.parametrize(
    ("size", "kept"),
    [("fast", "plain fast"), ("test", "plain fast whole both"), ("all", "plain fast whole both rare")],
)
def test_a_size_keeps_the_smaller_ones(size: str, kept: str) -> None:
    items = [
        _item("plain"), _item("fast", "fast", "fast"), _item("whole", folder="end_to_end"),
        _item("both", "test", "fast"), _item("rare", "fast", "all", "test"),
    ]  # fmt: skip
    config: Any = _Config()
    names = {item.name for item in items}
    keep(size, config, items)
    assert [item.name for item in items] == kept.split()
    assert {item.name for item in config.left_out} == names - set(kept.split())
