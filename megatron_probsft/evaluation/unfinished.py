"""Generations of an interrupted evaluation, kept line by line: OUTPUT/unfinished.jsonl.

The first line holds the settings that decide what is generated; a resumed evaluation must have the same.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from megatron_probsft.evaluation.engines.engine import EngineFacts
from megatron_probsft.evaluation.request import Generation, Request
from megatron_probsft.runtime.errors import UserError

NAME = "unfinished.jsonl"


class Unfinished:
    """A `Listener` that keeps what is generated.

    Attributes:
        generations: by benchmark, id and sample, those of earlier calls first.
        engine: what made the last ones.
        resumed: how many are of earlier calls.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        """Read what is there, or begin.

        Raises UserError: settings that are not as they were, by name; a file that is damaged.
        """
        self._file = output / NAME
        self.generations: dict[tuple[str, str, int], Generation] = {}
        self.engine: dict[str, Any] = {}
        settings = json.loads(json.dumps(settings))
        if self._file.exists():
            self._read(settings, output)
        self.resumed = len(self.generations)
        output.mkdir(parents=True, exist_ok=True)
        self._stream = self._file.open("a")
        if self._file.stat().st_size == 0:
            self._write({"settings": settings})

    @property
    def new_tokens(self) -> int:
        """The number of tokens that this call has generated."""
        return sum(len(one.tokens) for one in [*self.generations.values()][self.resumed :])

    def started(self, engine: EngineFacts) -> None:
        """Keep what generates."""
        self.engine = dataclasses.asdict(engine)
        self._write({"engine": self.engine})

    def finished(self, request: Request, generation: Generation) -> None:
        """Keep a generation."""
        self.generations[request.key] = generation
        self._write(
            {
                "key": request.key, "tokens": generation.tokens,
                "finish_reason": generation.finish_reason,
            }
        )  # fmt: skip

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._stream.close()

    def remove(self) -> None:
        """Remove the file, once the results stand in their own."""
        self.close()
        self._file.unlink()

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def _read(self, settings: dict[str, Any], output: Path) -> None:
        if not self._file.is_file():
            raise UserError(f"{self._file} is no file: name another folder with --output")
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may have been cut by the interruption
        if len(whole) < len(content):
            with self._file.open("r+b") as stream:
                stream.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._take(json.loads(line), settings, output)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise _damaged(self._file, number) from None

    def _take(self, line: dict[str, Any], settings: dict[str, Any], output: Path) -> None:
        if "settings" in line:
            _compare(line["settings"], settings, output)
        elif "engine" in line:
            self.engine = {**line["engine"]}
        else:
            benchmark, name, sample = line["key"]
            generation = Generation(line["tokens"], line["finish_reason"])
            self.generations[benchmark, name, sample] = generation


def settings_of(output: Path) -> dict[str, Any]:
    """The settings of the unfinished evaluation in this folder; empty where there is none.

    Raises UserError: its first line is something else.
    """
    file = output / NAME
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        first = stream.readline()
    try:
        return {**json.loads(first)["settings"]} if first.endswith(b"\n") else {}
    except (ValueError, TypeError, KeyError):
        raise _damaged(file, 1) from None


def _damaged(file: Path, line: int) -> UserError:
    return UserError(
        f"{file} line {line} is not what an evaluation writes: remove the file, or name another folder with "
        "--output"
    )


def _is_one_folder(old: Any, new: str) -> bool:
    """Tell whether two paths name one folder, as a relative and an absolute one may."""
    return isinstance(old, str) and Path(old).resolve() == Path(new).resolve()


def _compare(old: dict[str, Any], new: dict[str, Any], output: Path) -> None:
    changed = [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not (key == "--model" and _is_one_folder(old.get(key), new[key]))
    ]
    if changed:
        raise UserError(
            f"--output {output} holds an unfinished evaluation with other settings: {'; '.join(changed)}: "
            "repeat its settings, or name another folder"
        )
