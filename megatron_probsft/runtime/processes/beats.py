"""A process says where it is every few seconds; from that follows who is silent, and who is late."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

_NAMED = 4


@dataclass(frozen=True)
class Beat:
    """One line of a process about itself."""

    number: int
    """It rises with each beat."""
    moves: int
    """How often the main thread has moved on."""
    where: str
    """The place of the main thread: step 12, data."""
    host: str
    patient: bool
    """The main thread does, or waits for, something that may take however long it takes."""
    ended: bool

    def to_text(self) -> str:
        """Return it as JSON, which `of` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Beat:
        """Return the beat that `to_text` wrote."""
        return cls(**json.loads(text))


class Watch:
    """Knows since when each watched process has said nothing new, by this process's clock alone."""

    def __init__(self, ranks: Iterable[int], grace: float, limit: float) -> None:
        """Grace and limit are seconds of silence: who passes grace is suspect, who passes limit is gone."""
        self.ranks = list(ranks)
        self._grace, self._limit = grace, limit
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._looked = math.inf

    def see(self, beats: Mapping[int, Beat], now: float) -> None:
        """Take the newest beat of every watched process."""
        if now - self._looked > self._grace:  # this process stood still itself: nobody's silence counts
            pause = now - self._looked
            self._heard = {rank: heard + pause for rank, heard in self._heard.items()}
            self._moved = {rank: moved + pause for rank, moved in self._moved.items()}
        self._looked = now
        for rank, beat in beats.items():
            before = self._beats.get(rank)
            if before is None or beat.number != before.number:
                self._heard[rank] = now
            if before is None or beat.moves != before.moves:
                self._moved[rank] = now
        self._beats = dict(beats)

    def suspects(self, now: float) -> str:
        """Return who has been silent for longer than usual; empty if nobody has. Without how long."""
        return self._describe(self._silent_for(self._grace, now))

    def silent(self, now: float) -> str:
        """Return who has been silent for too long, and for how long; empty if nobody has."""
        ranks = self._silent_for(self._limit, now)
        if not ranks:
            return ""
        seconds = max(now - self._heard[rank] for rank in ranks)
        return f"{self._describe(ranks)} for {seconds:.0f} s (--distributed-timeout-minutes)"

    def stalled(self, now: float) -> str:
        """Return who is behind where all are alive and none has moved on for too long; else nothing."""
        alive = {rank: beat for rank, beat in self._beats.items() if not beat.ended}
        if not alive or any(beat.patient for beat in alive.values()):
            return ""
        still = now - max(self._moved[rank] for rank in alive)
        if still < self._limit:
            return ""
        least = min(beat.moves for beat in alive.values())
        behind = [rank for rank, beat in alive.items() if beat.moves == least]
        head = f"no process has moved on for {still:.0f} s: "
        if len(behind) == len(alive):
            return head + f"all are in {alive[behind[0]].where}"
        ahead = next(beat for beat in alive.values() if beat.moves > least)
        return head + f"behind is {self._names(behind)}; others are in {ahead.where}"

    def _silent_for(self, seconds: float, now: float) -> list[int]:
        return [
            rank
            for rank, heard in self._heard.items()
            if now - heard > seconds and not self._beats[rank].ended
        ]

    def _describe(self, ranks: list[int]) -> str:
        return f"{self._names(ranks)}: no sign of life" if ranks else ""

    def _names(self, ranks: list[int]) -> str:
        beats = [(rank, self._beats[rank]) for rank in ranks[:_NAMED]]
        more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
        return ", ".join(f"rank {rank} on {one.host} (last in {one.where})" for rank, one in beats) + more
