"""Many mathematical answers are judged: by text and numbers here, by algebra in processes that can be ended.

A signal cannot end every computation of sympy's, nor bound its memory. So a comparison has `MATH_SECONDS` of
CPU time, after which its process interrupts it, and some more, after which the process is killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from megatron_probsft.grading.boxed import LONGEST
from megatron_probsft.grading.grade import Grade
from megatron_probsft.grading.mathematics.answers import MathAnswer, decide, in_words
from megatron_probsft.grading.mathematics.found import stated, tail
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.progress import tqdm

MATH_SECONDS = 5.0  # of CPU time, so that a verdict does not depend on what else the machine does
_GRACE = 1.0  # CPU seconds more before the process is killed
_WALL_SECONDS = 120.0  # for a process that does not even compute
_SHARE = 20  # comparisons that are worth one more process, which takes a second to start


def judge_math(generations: Sequence[str], answers: Sequence[MathAnswer]) -> list[Grade]:
    """Return a grade for each generation; equal pairs of prediction and answer are judged once.

    The prediction is what the generation states (`found.stated`): in its last box or boxes, or after
    "answer"; without that, the last expression that math-verify finds near the end. A verdict is "unparsable"
    if there is none or math-verify cannot read it, and "timeout" if the comparison takes too long.
    """
    grades: dict[tuple[str | None, str, MathAnswer], Grade] = {}
    asked = []
    for generation, answer in zip(generations, answers, strict=True):
        found = stated(generation, several=answer.several, words=in_words(answer.text))
        key = (found, tail(generation) if found is None else "", answer)
        asked.append(key)
        if key in grades:
            continue
        if found == "" or (found is None and not key[1].strip()):
            grades[key] = Grade(None, "unparsable")
        elif found is not None and (decided := decide(found, answer)) is not None:
            grades[key] = Grade(found, "correct" if decided else "wrong")
    open_keys = [key for key in dict.fromkeys(asked) if key not in grades]
    grades |= _judge_by_algebra(open_keys)
    return [grades[key] for key in asked]


def _judge_by_algebra(
    keys: list[tuple[str | None, str, MathAnswer]],
) -> dict[tuple[str | None, str, MathAnswer], Grade]:
    if not keys:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    grades: dict[tuple[str | None, str, MathAnswer], Grade] = {}
    waiting = iter(keys)
    workers = [_Worker() for _ in range(min(cores, -(-len(keys) // _SHARE)))]
    try:
        with (
            selectors.DefaultSelector() as selector,
            tqdm(total=len(keys), desc="judging", disable=None, leave=False) as bar,
        ):
            idle, busy = list(workers), 0
            while True:
                while idle and (key := next(waiting, None)) is not None:
                    worker = idle.pop()
                    worker.ask(key)
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                    busy += 1
                if not busy:
                    return grades
                ready = {event.data for event, _ in selector.select(0.2)}
                for worker in [entry.data for entry in [*selector.get_map().values()]]:
                    if worker in ready:
                        selector.unregister(worker.output)
                        grades[worker.key] = worker.answer()
                    elif worker.exhausted():
                        selector.unregister(worker.output)
                        grades[worker.key] = worker.give_up("timeout")
                    else:
                        continue
                    idle.append(worker)
                    busy -= 1
                    bar.update()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process of `worker`, started when it is first asked and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.key: tuple[str | None, str, MathAnswer] = (None, "", MathAnswer(""))

    @property
    def output(self) -> int:
        assert self._process
        assert self._process.stdout
        return self._process.stdout.fileno()

    def ask(self, key: tuple[str | None, str, MathAnswer]) -> None:
        if self._process is None:
            self._start()
        assert self._process
        assert self._process.stdin
        found, text, answer = self.key = key
        request = {
            "found": found,
            "tail": text,
            "answer": dataclasses.asdict(answer),
            "seconds": MATH_SECONDS,
        }
        self._cpu, self._asked = self._cpu_seconds(), time.monotonic()
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Grade:
        """Return the reply as a grade; a process that ended instead, for want of memory, gives "timeout"."""
        assert self._process
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return self.give_up("timeout")
        verdict, prediction = json.loads(line)
        return Grade(prediction if prediction is None else prediction[:LONGEST], verdict)

    def exhausted(self) -> bool:
        waited = time.monotonic() - self._asked
        if waited < MATH_SECONDS:
            return False
        return waited > _WALL_SECONDS or self._cpu_seconds() - self._cpu > MATH_SECONDS + _GRACE

    def give_up(self, verdict: str) -> Grade:
        self.stop()
        return Grade(self.key[0], verdict)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _cpu_seconds(self) -> float:
        assert self._process
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megatron_probsft.grading.mathematics.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout
        assert self._process.stderr
        if self._process.stdout.readline() != b"ready\n":
            error = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.stop()
            raise UserError(f"math-verify does not start: {error[-1] if error else 'no message'}")
        self._process.stderr.close()
