"""Threads of one compression: some work on tensors, some on the CTUs of a tensor.

Tensors are handed out only while those in work have no more than `budget` elements together, so that memory is bounded by the
largest tensor, not by the number of threads.  Results come back in the order of the tensors: the output does not depend on threads.
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
LONE = 1.25  # share of a thread, of all elements, beyond which a tensor is work for several


@dataclass(frozen=True)
class Workers:
    """tiles: threads for the CTUs of a tensor, None for one thread; tensors: threads that each see to one tensor; number: of either."""

    tiles: Executor | None = None
    tensors: Executor | None = None
    number: int = 1

    def within(self, elements: int, total: int) -> Executor | None:
        """Threads for the CTUs of a tensor with so many of all elements.  None unless it would keep a thread at work longer than the
        others: what passes between threads costs more than it gains."""
        return self.tiles if elements * self.number > total * LONE else None

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        sizes: Sequence[int],
        finished: Callable[[Any], None] = lambda item: None,
    ) -> list[Any]:
        """`work(item)` for every item; `sizes`: elements of each; `finished` is called with each, in this thread, in the order in which they end.

        The largest go first, one for each thread but one, as nothing else may be left to do beside one that goes last; then the
        smallest, whose threads would wait for each other (more of their time is Python) were they not beside large ones."""
        if self.tensors is None:
            results = []
            for item in items:
                results.append(work(item))
                finished(item)
            return results
        budget = FREE + max((*sizes, 0)) * 5 // 4
        futures: dict[Future, int] = {}
        running: set[Future] = set()
        used = 0

        def wait_for_some() -> None:
            nonlocal running, used
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                used -= sizes[futures[future]]
                future.result()  # raises what went wrong
                finished(items[futures[future]])

        try:
            order = sorted(range(len(items)), key=lambda index: sizes[index], reverse=True)
            ahead = self.number - 1
            for index in order[:ahead] + order[:ahead - 1 : -1]:
                while running and used + sizes[index] > budget:
                    wait_for_some()
                future = self.tensors.submit(work, items[index])
                futures[future] = index
                running.add(future)
                used += sizes[index]
            while running:
                wait_for_some()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        results = [None] * len(items)
        for future, index in futures.items():
            results[index] = future.result()
        return results


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
