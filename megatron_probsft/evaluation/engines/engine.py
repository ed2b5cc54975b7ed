"""An engine generates for requests, and tells a listener of each generation at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_probsft.evaluation.request import Generation, Request


@dataclass(frozen=True)
class EngineFacts:
    """The facts about an engine that summary.json holds."""

    dtype: str
    device: str
    vllm: str


@dataclass(frozen=True)
class Seconds:
    """The time that an engine took to be ready, and to generate."""

    startup: float
    generation: float


@dataclass(frozen=True)
class Decoding:
    """The settings that all requests of an evaluation share; temperature 0 is greedy."""

    stop_token_ids: Sequence[int]
    temperature: float = 0.0


class Listener(Protocol):
    """Somebody who is told what an engine does."""

    def started(self, engine: EngineFacts) -> None:
        """The engine is ready; called once."""
        ...

    def finished(self, request: Request, generation: Generation) -> None:
        """A generation is complete; called in the order of completion."""
        ...


class Engine(Protocol):
    """Something that generates: vLLM in a process of its own, or a server."""

    def generate(self, requests: Sequence[Request], decoding: Decoding, listener: Listener) -> Seconds:
        """Generate for each request: greedy, or as a function of the request's seed.

        Raises UserError: the engine failed; what it has finished, the listener has.
        """
        ...
