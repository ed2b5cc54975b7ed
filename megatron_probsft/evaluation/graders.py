"""Is this generation right? Graders by name; a grader is a pure function of (generation, answer).

exact    the same text, but for white space at both ends
number   the last number of the generation equals the answer as a number ("1,234.0" equals "1234")
math     math-verify finds an expression in the generation equal to the answer ("\\boxed{1/2}" and "0.5")
"""

from __future__ import annotations

import atexit
import difflib
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal

from megatron_probsft.runtime.errors import UserError

Grader = Callable[[str, str], bool]

MATH_SECONDS = 30.0  # math-verify stops most runaway expressions by itself after 5 s a step
MATH_MEMORY = 4 << 30
_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_NUMBER = re.compile(  # a minus after a digit, a letter or a bracket is a subtraction
    rf"(?:(?<![\w.)])[-+−])?(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
)


def get_grader(name: str) -> Grader:
    """`grade(generation, answer) -> bool`, which raises UserError for an answer nothing could be equal to."""
    if name not in GRADERS:
        near = difflib.get_close_matches(name, GRADERS)
        raise UserError(
            f"--grader {name} is unknown: "
            + (f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(GRADERS)}")
        )
    return GRADERS[name]


def exact(generation: str, answer: str) -> bool:
    return generation.strip() == answer.strip()


def number(generation: str, answer: str) -> bool:
    wanted = _NUMBER.fullmatch(answer.strip())
    if not wanted:
        raise UserError(f"the answer {answer!r} is not a number, which --grader number needs")
    found = _NUMBER.findall(generation)
    return bool(found) and _decimal(found[-1]) == _decimal(wanted.group())


def math(generation: str, answer: str) -> bool:
    """By math-verify in a process that is ended when one comparison exceeds `MATH_SECONDS`: that is False."""
    verdict = _math_worker.ask(generation, answer)
    if verdict == "no expression":
        raise UserError(f"math-verify finds no expression in the answer {answer!r}")
    return verdict == "equal"


GRADERS: dict[str, Grader] = {"exact": exact, "number": number, "math": math}


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-"))


class _MathWorker:
    """A process that compares: a signal cannot end every computation of sympy's, nor bound its memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, generation: str, answer: str) -> str:
        if self._process is None:
            self._start()
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([generation, answer]).encode() + b"\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], MATH_SECONDS)
            verdict = self._process.stdout.readline() if ready else b""
        except BrokenPipeError:
            verdict = b""
        if not verdict:  # too long, or ended for want of memory
            self.stop()
        return verdict.decode().strip()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megatron_probsft.evaluation.graders"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            self.stop()
            raise UserError("--grader math needs math-verify: pip install math-verify")


_math_worker = _MathWorker()
atexit.register(_math_worker.stop)


def _serve_math() -> None:
    """One JSON line [generation, answer] in, one verdict line out, until the input ends."""
    import resource

    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY, MATH_MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no verdict
    replies.write("ready\n")
    for line in sys.stdin:
        generation, answer = json.loads(line)
        # An answer is a bare expression, a generation is text that holds one or is one.
        gold = parse(answer if "$" in answer or "\\boxed" in answer else f"\\boxed{{{answer}}}")
        if not gold:
            replies.write("no expression\n")
            continue
        found = parse(generation) or parse(f"\\boxed{{{generation}}}")
        replies.write("equal\n" if found and verify(gold, found) else "different\n")


if __name__ == "__main__":
    _serve_math()
