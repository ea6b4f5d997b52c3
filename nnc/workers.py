"""Threads of one compression: some work on tensors, some on the CTUs of a tensor.

Tensors are handed out in order and only while those in work have no more than `budget` elements together, so that memory is
bounded by the largest tensor, not by the number of threads.  Results come back in order: the output does not depend on threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .errors import InvalidArgument

FREE = 1 << 22  # elements that may always be in work
SHARES = 16  # of the elements for each thread: a tensor of less than a share is work for one thread


@dataclass(frozen=True)
class Workers:
    """tiles: threads for the CTUs of a tensor, None for one thread; tensors: threads that each see to one tensor; number: of either."""

    tiles: Executor | None = None
    tensors: Executor | None = None
    number: int = 1

    def within(self, elements: int, total: int) -> Executor | None:
        """Threads for the CTUs of a tensor with so many of all elements.  None for a small one: there are others for the other
        threads, and what passes between threads costs more than it gains."""
        return self.tiles if elements * SHARES * self.number > total else None

    def map(self, work: Callable[[Any], Any], items: Sequence[Any], sizes: Sequence[int]) -> Iterator[Any]:
        """`work(item)` for every item, in order; `sizes`: elements of each; the budget is 5/4 of the largest."""
        if self.tensors is None:
            yield from map(work, items)
            return
        budget = FREE + max((*sizes, 0)) * 5 // 4
        running: dict[Future, int] = {}
        futures: list[Future] = []
        try:
            for item, size in zip(items, sizes):
                while running and sum(running.values()) + size > budget:
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[done]
                future = self.tensors.submit(work, item)
                running[future] = size
                futures.append(future)
            for future in futures:
                yield future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def check_threads(threads: int | None) -> int:
    """Number of threads that was asked for; all cores, 16 at most, if none was."""
    if threads is None:
        return min(os.cpu_count() or 1, 16)
    if not isinstance(threads, int) or threads < 1:
        raise InvalidArgument(f"threads = {threads!r}: must be a whole number of at least 1")
    return threads


@contextmanager
def open_workers(threads: int) -> Iterator[Workers]:
    """Workers with `threads` threads at work; those on tensors mostly wait for those on tiles."""
    if threads == 1:
        yield Workers()
        return
    with ThreadPoolExecutor(threads) as tiles, ThreadPoolExecutor(threads) as tensors:
        yield Workers(tiles, tensors, threads)
