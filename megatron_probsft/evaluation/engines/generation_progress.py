"""Progress of generations: one line rewritten in place on a terminal; elsewhere a new line every 5 s."""

from __future__ import annotations

import datetime
import sys
import time


class GenerationProgress:
    """The line that says how many generations are complete, how fast, and when all will be."""

    def __init__(self, total: int, max_new_tokens: int) -> None:
        self._total, self._longest = total, max_new_tokens
        self._terminal = sys.stdout.isatty()
        self._last = self._begin = time.monotonic()

    def start(self) -> None:
        """Measure the speed from here on."""
        self._begin = time.monotonic()

    def show(self, finished: int, finished_tokens: int, tokens: int) -> None:
        """Say how far it is; `tokens` are those of unfinished generations too, as far as they are known."""
        speed = tokens / max(time.monotonic() - self._begin, 1e-3)
        mean_length = finished_tokens / finished if finished else self._longest
        left = max(0.0, mean_length * self._total - tokens) / max(speed, 1e-3)
        self.say(
            f"vLLM: {finished}/{self._total} generations | {speed:,.0f} tokens/s"
            f" | ETA {datetime.timedelta(seconds=round(left)) if tokens else 'unknown'}"
        )

    def say(self, text: str) -> None:
        """Show a text in place of the last one, or as a line of its own if the last one is old."""
        if self._terminal:
            print(f"\r\033[K{text}", end="", flush=True)
        elif time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            print(text, flush=True)

    def close(self) -> None:
        """Leave no line behind on a terminal."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)
