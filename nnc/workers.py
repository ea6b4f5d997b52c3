"""Threads of one compression: some work on tensors, some on the CTUs of a tensor.

Tensors are handed out only while those in work have no more than `budget` elements together, so that memory is bounded by the
largest tensor, not by the number of threads.  Results come back in the order of the tensors: the output does not depend on threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

from .errors import InvalidArgument

FREE = 1 << 22  # elements that may always be in work
BREATH = 0.05  # seconds between looks at what has ended
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
        order = sorted(range(len(items)), key=lambda index: sizes[index], reverse=True)
        ahead = self.number - 1
        order = order[:ahead] + order[: ahead - 1 : -1]
        turns = _Turns(work, items, sizes, deque(order))
        running = {self.tensors.submit(turns.take) for _ in range(min(self.number, len(items)))}
        try:
            while running:
                done, running = wait(running, timeout=BREATH, return_when=FIRST_EXCEPTION)
                while turns.ended:
                    finished(items[turns.ended.popleft()])
                for future in done:
                    future.result()  # raises what went wrong
        except BaseException:
            turns.stop()
            raise
        return turns.results


class _Turns:
    """Items that threads take one after the other; ended: those that are done, in the order in which they ended.

    The threads help themselves: if another one handed out what is next, it would have to wake up for each, and they would wait for it."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any], sizes: Sequence[int], order: deque[int]) -> None:
        self.work, self.items, self.sizes, self.order = work, items, sizes, order
        self.results: list[Any] = [None] * len(items)
        self.ended: deque[int] = deque()
        self.budget = FREE + max((*sizes, 0)) * 5 // 4
        self.used = self.running = 0
        self.changed = Condition()

    def take(self) -> None:
        """Work of one thread."""
        while (index := self._next()) is not None:
            try:
                self.results[index] = self.work(self.items[index])
            except BaseException:
                self.stop()
                raise
            self.ended.append(index)
            with self.changed:
                self.used -= self.sizes[index]
                self.running -= 1
                self.changed.notify_all()

    def _next(self) -> int | None:
        with self.changed:
            while self.order and self.running and self.used + self.sizes[self.order[0]] > self.budget:
                self.changed.wait()
            if not self.order:
                return None
            index = self.order.popleft()
            self.used += self.sizes[index]
            self.running += 1
            return index

    def stop(self) -> None:
        """Hand out nothing more."""
        with self.changed:
            self.order.clear()
            self.changed.notify_all()


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
