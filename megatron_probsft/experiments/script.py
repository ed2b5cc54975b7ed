"""An experiment's commands as a bash script that a person can read, change and run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.experiments.steps import ROOT, Step, shown_path

_HEAD = """\
#!/usr/bin/env bash
# {title}
# Written by tools/one_click.py. What is done is not done again: run it once more after an interruption.
set -euo pipefail
cd {root}
python=${{PYTHON:-{python}}}

step() {{  # step RECORD DONE WORD…: run `python WORD…` unless DONE is there, made by that same command
    local record=$1 finished=$2
    shift 2
    if [ -e "$finished" ]; then
        if [ -e "$record" ] && ! printf '%s\\n' "$@" | cmp -s - "$record"; then
            echo "error: $finished was made by another command, see $record: move its folder away" >&2
            exit 2
        fi
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
    """The script's text: the same commands, in the same order, with the same rule of what is done."""
    parts = [_HEAD.format(title=title, root=shlex.quote(str(ROOT)), python=_python())]
    for step in steps:
        done = "" if step.done is None else shown_path(step.done)
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in step.environment.items())
        head = f"{variables}step {shlex.join([shown_path(step.record), done])}"
        parts.append(f"# {step.title}\n{head}{_wrapped(step.words)}\n")
    return "\n".join(parts)


def _python() -> str:
    """The interpreter that runs this."""
    return shlex.quote(shown_path(Path(sys.executable)))


def _wrapped(words: Sequence[str]) -> str:
    """A flag and its values on each line."""
    text = ""
    for word in words:
        text += (" \\\n    " if word.startswith("--") or not text else " ") + shlex.quote(word)
    return text
