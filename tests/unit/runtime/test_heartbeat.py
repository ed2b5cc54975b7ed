"""What one process makes of the beats of another, in a store and with a clock of the test's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from megatron_probsft.runtime.processes import heartbeat
from megatron_probsft.runtime.processes.beats import Beat
from megatron_probsft.runtime.processes.heartbeat import Heartbeat

SECONDS = 600.0


class Store:
    """A store as torch's, of one process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def clone(self) -> Store:
        return self

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key] for key in keys]

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        return int(self.values[key])


class Exited(Exception):
    """Instead of the end of the process."""


class World:
    """Rank 0's heartbeat, which looks when the test says so, and rank 1's beats."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def leave(status: int) -> None:
            raise Exited(status)

        self.now, self.beats, self.store = 0.0, 0, Store()
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(heartbeat.os, "_exit", leave)
        self.heart = Heartbeat(self.store, 0, 2, SECONDS)
        monkeypatch.setattr(self.heart._over, "wait", lambda _: None)  # what it grants the others at its end
        for key in ("verdict", "suspects"):
            self.store.set(f"heartbeat/{key}", "")
        self.look(0, alive=True)

    def look(self, seconds: float, *, alive: bool) -> None:
        """Let so much time pass, and the heartbeat look every 5 seconds, as it does."""
        end = self.now + seconds
        while True:
            self.heart._beat()
            if alive or not self.beats:
                self.beats += 1
                self.store.set("heartbeat/1", Beat(self.beats, 1, "step 3", "node1", False, False).to_text())
            self.heart._look()
            if self.now >= end:
                return
            self.now += 5


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch)
    yield world
    os.close(world.heart._signals), os.close(world.heart._wakeup)


def _asked(world: World) -> None:
    os.write(world.heart._wakeup, bytes([signal.SIGTERM]))
    world.heart._asked = world.heart._was_asked_to_stop()
    assert world.heart._asked


def test_who_is_told_to_stop_outlasts_a_pause_of_another(world: World) -> None:
    """And saves, which may take long: one that moves on, or is patient, is not ended by another's silence."""
    _asked(world)
    for _ in range(3):
        world.look(60, alive=False)
        world.look(60, alive=True)
    for _ in range(3):
        world.look(50, alive=False)
        world.heart.move("saving")
    world.look(10, alive=True)
    with world.heart.patience("writing"):
        world.look(300, alive=False)
    world.look(50, alive=False)
    with pytest.raises(Exited):
        world.look(20, alive=False)


def test_who_is_told_to_stop_ends_if_another_stays_silent(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    _asked(world)
    with pytest.raises(Exited):
        world.look(100, alive=False)
    assert world.now <= 90
    assert capsys.readouterr().err == (
        "error: told to stop while rank 1 on node1 (last in step 3): no sign of life: "
        "nothing can be saved without it\n"
    )


def test_the_end_comes_without_anywhere_to_say_why(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads standard error any more, and torchrun's folder has no room."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    with os.fdopen(writer, "wb", buffering=0) as raw, monkeypatch.context() as patch:
        patch.setattr(heartbeat.sys, "stderr", _Text(raw))
        with pytest.raises(Exited):
            world.heart._end("gone")


class _Text:
    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw

    def write(self, text: str) -> None:
        self.raw.write(text.encode())

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("well", [True, False])
def test_only_who_has_done_its_work_has_ended_well(
    well: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that crashes by an exception comes by at exit too; the others are to name it."""
    monkeypatch.setattr(heartbeat, "_current", world.heart)
    world.heart._threads = []
    kept = os.dup(world.heart._signals), os.dup(world.heart._wakeup)
    heartbeat.stop_heartbeat() if well else world.heart.stop()
    world.heart._signals, world.heart._wakeup = kept
    assert Beat.of(world.store.values["heartbeat/0"].decode()).ended is well
