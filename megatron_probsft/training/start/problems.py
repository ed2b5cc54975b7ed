"""The list of what is wrong with a run, in the order of its checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from megatron_probsft.runtime.errors import UserError


class Problems:
    """The list that all checks of a run write to: a run stops at the first line, a dry run hears them all."""

    def __init__(self, *, collecting: bool = False) -> None:
        """collecting: go on after a problem; `raise_all` tells them."""
        self._collecting = collecting
        self._lines: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, lines: Iterable[str]) -> None:
        """Note these lines, each once.

        Raises:
            UserError: the first line, unless problems are collected.
        """
        for line in lines:
            if not self._collecting:
                raise UserError(line)
            if line not in self._lines:
                self._lines.append(line)

    def attempt[T](self, work: Callable[[], T]) -> T | None:
        """Return what the work returns, or None if it raised a `UserError`, which is noted as `add` does."""
        try:
            return work()
        except UserError as error:
            self.add([str(error)])
            return None

    def raise_all(self) -> None:
        """Tell what was collected.

        Raises:
            UserError: with all lines, numbered, if there are any.
        """
        if self._lines:
            listed = "".join(f"\n  {number}. {text}" for number, text in enumerate(self._lines, 1))
            raise UserError(f"{len(self._lines)} problem(s):{listed}")
