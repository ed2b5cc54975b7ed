"""The process that compares mathematical answers, with math-verify: one JSON line in, one out.

In:  {"found": boxed answer or null, "tail": end of the generation, "answer": a `MathAnswer`, "seconds"}
Out: [verdict, prediction]

A comparison that takes more than `seconds` of CPU time is interrupted: "timeout". What no signal interrupts,
one large multiplication for instance, is ended by `math_judge` from outside, with this process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Expr, Float, Symbol, UnevaluatedExpr
from sympy.core.function import AppliedUndef

from megatron_probsft.evaluation.math_answers import MathAnswer, decide, match_all, parts

MEMORY = 4 << 30
_SMALL = 1e-3  # math-verify rounds at the sixth decimal place, which below this is too coarse


class _Unparsable(Exception):
    pass


def judge(found: str | None, tail: str, answer: MathAnswer) -> tuple[str, str | None]:
    """The verdict, "correct", "wrong" or "unparsable", and the prediction that it is about."""
    if found is None:
        found = _unboxed(tail)
        if found is None:
            return "unparsable", None
    try:
        return ("correct" if _right(found, answer) else "wrong"), found
    except _Unparsable:
        return "unparsable", found


def _right(found: str, answer: MathAnswer) -> bool:
    decided = decide(found, answer)
    if decided is not None:
        return decided

    def equal(one: str, wanted: str) -> bool:
        decided = decide(one, MathAnswer(wanted, False, answer.tolerance, answer.unit))
        return _same_expression(one, wanted) if decided is None else decided

    if answer.several:
        return match_all(parts(found, several=True), parts(answer.text, several=True), equal)
    return _same_expression(found, answer.text)


def _same_expression(found: str, wanted: str) -> bool:
    predicted = _parsed(found)
    if not predicted:
        raise _Unparsable
    gold = _parsed(wanted)
    if not gold or _differ_in_value(gold[0], predicted[0]):
        return False
    return verify(list(gold), list(predicted), timeout_seconds=None) and _near(gold, predicted)


def _differ_in_value(one: Any, two: Any) -> bool:
    """Whether two expressions have other values where their symbols have some: far faster than algebra.

    False for what has no value, as sets and equations, and for percentages, which math-verify reads two ways.
    """
    if not isinstance(one, Expr) or not isinstance(two, Expr):
        return False
    if one.has(UnevaluatedExpr, AppliedUndef) or two.has(UnevaluatedExpr, AppliedUndef):
        return False
    symbols = sorted(one.free_symbols | two.free_symbols, key=str)
    if len({str(symbol).lower() for symbol in symbols}) != len(symbols) or any(
        isinstance(side, Symbol) or (side.is_Mul and all(part.is_Symbol for part in side.args))
        for side in (one, two)
    ):
        return False  # perhaps words
    places = {symbol: Float(0.3 + 0.137 * place) for place, symbol in enumerate(symbols)}
    try:
        first, second = (complex(side.evalf(subs=places)) for side in (one, two))
    except (TypeError, ValueError, ArithmeticError):
        return False
    return abs(first - second) > 1e-4 * max(abs(first), abs(second))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """What math-verify makes of an answer that is nothing but the answer."""
    return tuple(parse(f"\\boxed{{{text.replace('$', '')}}}", parsing_timeout=None))  # type: ignore[arg-type]


def _unboxed(tail: str) -> str | None:
    """The text of the last expression that math-verify finds in a generation, or a short text as it is."""
    found = parse(tail, parsing_timeout=None)  # type: ignore[arg-type]
    if found:
        return str(found[-1])
    text = tail.strip()
    return text if text and len(text) < 100 and "\n" not in text and _parsed(text) else None


def _near(gold: tuple[Any, ...], predicted: tuple[Any, ...]) -> bool:
    """False for small numbers that only rounding made equal."""
    try:
        one, two = float(gold[0]), float(predicted[0])
    except (TypeError, ValueError, OverflowError):  # no numbers
        return True
    return not 0 < abs(one) < _SMALL or abs(one - two) <= 1e-4 * abs(one)


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
