"""Who is silent, and who is late, by the clock of the one that watches."""

from __future__ import annotations

import dataclasses

from megatron_probsft.runtime.processes.beats import Beat, Watch

GRACE, LIMIT = 15.0, 585.0
FIRST = Beat(1, 1, "step 7, computing", "node1", patient=False, ended=False)


def _watch(beats: dict[int, Beat], until: int, **changes: object) -> tuple[Watch, float]:
    """A watch that has seen rank 0 beat every 5 s; the others' beats stay as they are but for `changes`."""
    watch = Watch(beats, GRACE, LIMIT)
    for second in range(0, until + 1, 5):
        for rank in beats:
            if rank == 0 or changes:
                beats[rank] = dataclasses.replace(beats[rank], number=second, **changes)  # type: ignore
        watch.see(beats, float(second))
    return watch, float(until)


def test_a_beat_is_read_as_it_was_written() -> None:
    assert Beat.of(FIRST.to_text()) == FIRST


def test_silence_is_suspect_soon_and_too_long_later() -> None:
    watch, now = _watch({0: FIRST, 1: FIRST, 2: FIRST}, 15)
    assert watch.suspects(now) == watch.silent(now) == ""
    watch, now = _watch({0: FIRST, 1: FIRST, 2: FIRST}, 20)
    both = "rank 1 on node1 (last in step 7, computing), rank 2 on node1 (last in step 7, computing)"
    assert watch.suspects(now) == f"{both}: no sign of life"
    assert watch.silent(now) == ""
    watch, now = _watch({0: FIRST, 1: FIRST, 2: FIRST}, 590)
    assert watch.silent(now) == f"{both}: no sign of life for 590 s (--distributed-timeout-minutes)"


def test_who_has_ended_is_not_silent_and_many_are_not_all_named() -> None:
    watch, now = _watch({0: FIRST, 1: dataclasses.replace(FIRST, ended=True)}, 1000)
    assert watch.suspects(now) == watch.silent(now) == ""
    watch, now = _watch(dict.fromkeys(range(100), FIRST), 1000)
    assert " and 95 more: no sign of life" in watch.silent(now)


def test_nobody_is_silent_while_the_watch_itself_stood_still() -> None:
    watch, now = _watch({0: FIRST, 1: FIRST}, 10)
    watch.see({0: FIRST, 1: FIRST}, now + 3600)  # a suspended machine
    assert watch.suspects(now + 3600) == watch.silent(now + 3600) == watch.stalled(now + 3600) == ""
    watch.see({0: FIRST, 1: FIRST}, now + 3605)
    assert watch.suspects(now + 3610)


def test_who_is_behind_is_told_where_none_moves_on() -> None:
    behind = dataclasses.replace(FIRST, moves=9, where="step 7, data", host="node3")
    beats = {0: dataclasses.replace(FIRST, moves=10), 1: behind, 2: dataclasses.replace(FIRST, moves=10)}
    watch, now = _watch(dict(beats), 580, patient=False)
    assert watch.stalled(now) == ""
    watch, now = _watch(dict(beats), 585, patient=False)
    assert watch.silent(now) == ""  # their threads live
    assert watch.stalled(now) == (
        "no process has moved on for 585 s: behind is rank 1 on node3 (last in step 7, data); others are in "
        "step 7, computing"
    )
    watch, now = _watch({0: FIRST, 1: FIRST}, 600, patient=False)
    assert watch.stalled(now) == "no process has moved on for 600 s: all are in step 7, computing"


def test_work_that_may_take_any_time_is_no_stall() -> None:
    watch, now = _watch({0: FIRST, 1: FIRST}, 7200, patient=True)
    assert watch.stalled(now) == watch.silent(now) == ""
