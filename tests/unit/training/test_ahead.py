"""Items are made one ahead in a thread, in order; errors come where they belong, and the thread ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from megatron_probsft.training.ahead import ahead


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_each_item_is_made_while_the_one_before_it_is_worked_on() -> None:
    made = [threading.Event() for _ in range(4)]
    makers = set()

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            makers.add(threading.current_thread().name)
            event.set()
            yield number

    coming = ahead(items())
    assert _threads() == []  # nothing happens before the first is asked for
    for number in range(4):
        assert next(coming) == number
        if number < 3:
            assert made[number + 1].wait(10)
        assert not any(event.is_set() for event in made[number + 2 :])
    assert list(coming) == []
    assert threading.current_thread().name not in makers
    assert _threads() == []


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second cannot be made")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="the second cannot be made"):
        next(coming)
    assert _threads() == []


def test_it_ends_early_and_waits_for_what_is_being_made() -> None:
    at_work, go_on, done = threading.Event(), threading.Event(), []

    def items() -> Iterator[int]:
        yield 1
        at_work.set()
        go_on.wait(10)
        done.append(2)
        yield 2

    coming = ahead(items())
    next(coming)
    at_work.wait(10)
    threading.Timer(0.05, go_on.set).start()
    coming.close()
    assert done == [2]
    assert _threads() == []
