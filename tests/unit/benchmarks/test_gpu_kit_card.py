"""What the kit asks of a card and of its driver, with stand-ins for both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.kit import timing
from benchmarks.gpu.machine import QUERY, nvidia_smi


@pytest.mark.parametrize(("uuid", "name"), [("11-22", "torch's"), (None, "the first")])
def test_the_state_is_of_torchs_card(
    uuid: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    rest = ", 1" * (len(QUERY) - 1)
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--id=GPU-11-22*) echo "torch\'s{rest}";; '
        f'*) echo "the first{rest}"; echo "torch\'s{rest}";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    properties = SimpleNamespace(uuid=uuid) if uuid else SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert nvidia_smi()["name"] == name


def test_the_host_is_ahead_of_the_device_when_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def elapsed_time(self, _: Event) -> float:
            return 1.0

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append(f"{cycles / 2e6:.0f} ms"))
    cache = SimpleNamespace(zero_=lambda: done.append("cache"))
    monkeypatch.setattr(timing, "_cache", lambda: cache)
    found = timing.seconds_of(
        [lambda: done.append("stage")], lambda: done.append("prepare"), small=False, repeats=1
    )
    assert found == [0.001]
    assert done[-7:] == ["prepare", "cache", "1 ms", "event", "stage", "event", "synchronize"]
