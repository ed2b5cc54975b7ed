"""A process that compares mathematical answers, with math-verify: one JSON line in, one out.

In:  {"found": boxed answer or null, "tail": end of the generation, "answer": a `MathAnswer`, "seconds"}
Out: [verdict, prediction]

A comparison that takes more than `seconds` of CPU time is interrupted: "timeout". What no signal interrupts,
one large multiplication for instance, is ended by `judge` from outside, with this process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys

from math_verify import parse
from math_verify.errors import TimeoutException

from megatron_probsft.grading.mathematics.algebra import SympyAlgebra, Unparsable
from megatron_probsft.grading.mathematics.answers import MathAnswer
from megatron_probsft.grading.mathematics.compare import Comparison
from megatron_probsft.grading.mathematics.notation import canonical
from megatron_probsft.grading.quantities.units import quantity

MEMORY = 4 << 30


def judge(found: str | None, tail: str, answer: MathAnswer) -> tuple[str, str | None]:
    """Return a verdict, "correct", "wrong" or "unparsable", and the prediction that it is about."""
    if found is None:
        found = _unmarked(tail)
        if found is None:
            return "unparsable", None
    comparison = Comparison(SympyAlgebra(), answer.tolerance, answer.unit)
    try:
        right = comparison.equal(found, answer.text, several=answer.several)
    except Unparsable:
        return "unparsable", found
    return ("correct" if right else "wrong"), found


def _unmarked(tail: str) -> str | None:
    """Return a short text as it is, or the last expression that math-verify finds in a generation."""
    text = tail.strip()
    short = text and len(text) < 100 and "\n" not in text
    words = re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2,}", text)
    if short and (not words or (len(words) < 3 and quantity(canonical(text))[1])):
        return text
    found = parse(tail, parsing_timeout=None)  # type: ignore[arg-type]
    if found:
        return str(found[-1])
    return text if short else None


def _interrupt(*_: object) -> None:
    raise TimeoutException  # a BaseException: neither sympy nor math-verify takes it for an error of theirs


def main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _interrupt)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no verdict
    replies.write("ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            reply = judge(request["found"], request["tail"], MathAnswer(**request["answer"]))
            signal.setitimer(signal.ITIMER_PROF, 0)
        except TimeoutException:
            reply = ("timeout", request["found"])
        except (RecursionError, MemoryError, ArithmeticError, ValueError, TypeError, AttributeError):
            reply = ("unparsable", request["found"])  # of sympy's, about what it parsed
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
