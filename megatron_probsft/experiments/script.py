"""Writes an experiment's commands as a bash script that a person can read, change and run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.experiments.steps import Step
from megatron_probsft.experiments.words import shown_path

_HEAD = """\
#!/usr/bin/env bash
# {title}
# Written by probsft one-click. What is done is not done again: run it once more after an interruption.
set -euo pipefail
cd {folder}
python=${{PYTHON:-{python}}}

step() {{  # step RECORD DONE WORD…: run `python WORD…`, unless it has made DONE before
    local record=$1 finished=$2
    shift 2
    if [ -e "$finished" ]; then
        "$python" -m megatron_probsft.experiments.records "$record" "$finished" "$@"
        echo "done before: $finished"
        return
    fi
    echo "\\$ python $*"
    mkdir -p "$(dirname "$record")"
    printf '%s\\n' "$@" > "$record"
    "$python" "$@"
    if [ -n "$finished" ] && [ ! -e "$finished" ]; then
        echo "stopped before its end; run this script again to continue" >&2
        exit 1
    fi
}}
"""


def render(title: str, steps: Sequence[Step]) -> str:
    """Return the script, which runs the same commands in the same order, and what is done not again."""
    parts = [_HEAD.format(title=title, folder=shlex.quote(str(Path.cwd())), python=_python())]
    for step in steps:
        done = "" if step.done is None else shown_path(step.done)
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in step.environment.items())
        head = f"{variables}step {shlex.join([shown_path(step.record), done])}"
        parts.append(f"# {step.title}\n{head}{_wrapped(step.words)}\n")
    return "\n".join(parts)


def _python() -> str:
    """Return the interpreter that runs this program, quoted for the shell."""
    return shlex.quote(shown_path(Path(sys.executable)))


def _wrapped(words: Sequence[str]) -> str:
    """Return the words, quoted for the shell, with each flag and its values on a line of their own."""
    text = ""
    for word in words:
        text += (" \\\n    " if word.startswith("--") or not text else " ") + shlex.quote(word)
    return text
