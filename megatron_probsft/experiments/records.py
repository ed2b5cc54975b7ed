"""Keeps beside each result a file with the words of the command that made it, one a line.

python -m megatron_probsft.experiments.records RECORD RESULT WORD…    # an error if other words made RESULT
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.experiments.words import shown_path
from megatron_probsft.runtime.errors import UserError, one_line_errors

# Programs as records name them that were written when experiments ran files of the checkout.
_FORMER_PROGRAMS = {
    "tools/prepare_data.py": "megatron_probsft.commands.prepare_data",
    "tools/probe.py": "megatron_probsft.commands.probe",
    "tools/evaluate.py": "megatron_probsft.commands.evaluate",
    "tools/report.py": "megatron_probsft.commands.report",
    "examples/quickstart/smollm2.py": "megatron_probsft.experiments.smollm2",
}


def write_record(record: Path, words: Sequence[str]) -> None:
    """Keep the words of the command that is about to run."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("".join(f"{word}\n" for word in words))


def check_record(record: Path, result: Path, words: Sequence[str]) -> None:
    """Refuse a result that was made by other words than these; one without a record is accepted.

    Raises:
        UserError: with the words that differ.
    """
    if not record.exists():
        return
    before, now = _comparable(record.read_text().splitlines()), _comparable(words)
    if before == now:
        return
    was, is_now = (
        shlex.join(word for word in words if word not in others)
        for words, others in ((before, now), (now, before))
    )
    raise UserError(
        f"{shown_path(result)} was made with {was or 'less'}, not {is_now or 'that'} "
        f"({shown_path(record)}): move its folder away, or choose another --output"
    )


def _comparable(words: Sequence[str]) -> list[str]:
    """Return the words with today's programs, and with paths inside the current folder relative to it."""
    found: list[str] = []
    for word in words:
        if word in _FORMER_PROGRAMS:
            found += ["-m", _FORMER_PROGRAMS[word]]
        else:
            found.append(shown_path(Path(word)) if word.startswith("/") else word)
    return found


def main() -> None:
    with one_line_errors():
        record, result, *words = sys.argv[1:]
        check_record(Path(record).absolute(), Path(result).absolute(), words)


if __name__ == "__main__":
    main()
