"""Rows are encoded in several processes, and the progress is shown."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

from megatron_probsft.data.store.encoding import Encoded, Encoder
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.progress import tqdm

_ROWS = 500  # at once


def encode(rows: Iterable[dict[str, Any]], encoder: Encoder, workers: int) -> Iterator[Encoded]:
    """Yield the samples of all rows, in their order; one worker is a thread of this process.

    Raises UserError: as reading and the encoder do; a process that was killed.
    """
    pending: deque[Future[Encoded]] = deque()
    with _workers(encoder, workers) as (pool, work):
        try:
            for batch in itertools.batched(rows, _ROWS):
                pending.append(pool.submit(work, batch))
                if len(pending) > 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {workers} processes that tokenize was killed (out of memory?): try fewer with "
                "--num-workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _workers(
    encoder: Encoder, workers: int
) -> Iterator[tuple[Executor, Callable[[Sequence[dict[str, Any]]], Encoded]]]:
    """Open an executor, with what to submit to it."""
    if workers == 1:
        yield ThreadPoolExecutor(1), encoder  # the tokenizers library has its own threads
        return
    context = _start_method()
    parent = os.getpid() if context.get_start_method() == "fork" else None
    start = {"initializer": _start_worker, "initargs": (encoder, parent)}
    with _no_tokenizer_threads():  # the processes share the CPUs already
        yield ProcessPoolExecutor(workers, context, **start), _encode


def _start_method() -> BaseContext:
    """Return how processes start: forked, they inherit the encoder; but CUDA and NCCL do not stand a fork.

    So where there are GPUs, a server that knows neither forks them, and each gets a copy of the encoder.
    """
    if "torch" not in sys.modules:  # then CUDA cannot be in use, and torch is not imported to ask
        return get_context("fork")
    from megatron_probsft.runtime.device import has_gpu

    if not has_gpu():
        return get_context("fork")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


_thread: ThreadPoolExecutor  # of a worker process
_encoder: Encoder


def _start_worker(encoder: Encoder, parent: int | None) -> None:
    # In a thread, with malloc's memory of its own, tokenizing takes 2/3 of the time that it takes in the main
    # thread, whose memory is the one the parent has filled. And what was inherited is no garbage to look for.
    global _thread, _encoder
    _thread, _encoder = ThreadPoolExecutor(1), encoder
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with, args=(parent or os.getppid(),), daemon=True).start()


def _encode(rows: Sequence[dict[str, Any]]) -> Encoded:
    return _thread.submit(_encoder, rows).result()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """Keep the tokenizers library to one thread in processes that are forked meanwhile."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def watched(
    batches: Iterator[Encoded], total: int, log: Callable[[str], None]
) -> Generator[Encoded, None, None]:
    """Pass samples on and show the time left: a bar on a terminal, else a line about every 10 s."""
    started = said = time.monotonic()
    done = tokens = 0
    with tqdm(total=total, desc="tokenizing", unit=" rows", disable=None, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.rows)
            done, tokens, now = done + batch.rows, tokens + len(batch.tokens), time.monotonic()
            if bar.disable and now - said > 10:
                said, left = now, (now - started) / done * (total - done)
                log(
                    f"tokenizing: {done:,} of {total:,} rows | {tokens / (now - started):,.0f} tokens/s | "
                    f"{left:.0f} s left"
                )
