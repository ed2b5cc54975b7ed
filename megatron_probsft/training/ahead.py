"""Items that a thread makes one ahead, while the one before is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from megatron_probsft.runtime.device import current_device, use_device


def ahead[T](items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items; from the first on, each is made while the caller works on the one before it.

    What an item raises is raised where it would be yielded. Close the generator to end its thread early; it
    waits for the item that is being made.
    """
    # A new thread computes on GPU 0, whichever its process has.
    with ThreadPoolExecutor(1, "ahead", use_device, (current_device(),)) as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
