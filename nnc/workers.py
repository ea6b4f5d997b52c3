"""Threads that each see to a tensor, and help others with the CTUs of theirs when none is left.

Tensors are handed out only while those in work have no more than `budget` elements together, so that memory is bounded by the
largest tensor, not by the number of threads.  Results come back in the order of the tensors: the output does not depend on threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

from .errors import InvalidArgument
from .pool import Pool

FREE = 1 << 22  # elements that may always be in work
BREATH = 0.05  # seconds between looks at what has ended
LARGE = 0.25  # share of a thread, of all elements, beyond which a tensor is work for several


@dataclass(frozen=True)
class Workers:
    """pool: threads for tensors and for the CTUs of a tensor, None for one thread; number: of them."""

    pool: Executor | None = None
    number: int = 1

    def within(self, elements: int, total: int) -> Executor | None:
        """Threads for the CTUs of a tensor with so many of all elements.  None unless it may be at work when others have nothing to do any more."""
        return self.pool if elements * self.number > total * LARGE else None

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
        if self.pool is None:
            results = []
            for item in items:
                results.append(work(item))
                finished(item)
            return results
        order = sorted(range(len(items)), key=lambda index: sizes[index], reverse=True)
        ahead = self.number - 1
        turns = _Turns(self, work, items, sizes, deque(order[:ahead] + order[: ahead - 1 : -1]))
        try:
            while turns.go_on():
                while turns.ended:
                    finished(items[turns.ended.popleft()])
            for index in turns.ended:
                finished(items[index])
        finally:
            turns.stop()
        if turns.error:
            raise turns.error
        return turns.results


class _Turns:
    """Items that threads take one after the other; ended: those that are done, in the order in which they ended; error: what went wrong first.

    The threads help themselves: if another one handed out what is next, it would have to wake up for each, and they would wait for it."""

    def __init__(self, workers: Workers, work: Callable[[Any], Any], items: Sequence[Any], sizes: Sequence[int], order: deque[int]) -> None:
        self.workers, self.work, self.items, self.sizes, self.order = workers, work, items, sizes, order
        self.results: list[Any] = [None] * len(items)
        self.ended: deque[int] = deque()
        self.error: BaseException | None = None
        self.budget = FREE + max((*sizes, 0)) * 5 // 4
        self.used = self.active = 0
        self.changed = Condition()
        with self.changed:
            self._start()

    def go_on(self) -> bool:
        """Whether anything is left, after a moment."""
        with self.changed:
            return not self.changed.wait_for(lambda: not self.active, BREATH)

    def stop(self) -> None:
        """Hand out nothing more."""
        with self.changed:
            self.order.clear()

    def _start(self) -> None:
        """As many threads as there is room for; the lock is held."""
        while self.active < self.workers.number and (index := self._next()) is not None:
            self.active += 1
            self.workers.pool.submit(self._take, index)

    def _next(self) -> int | None:
        """What can be begun now; the lock is held."""
        if not self.order or (self.used and self.used + self.sizes[self.order[0]] > self.budget):
            return None
        index = self.order.popleft()
        self.used += self.sizes[index]
        return index

    def _take(self, index: int | None) -> None:
        """Work of one thread."""
        while index is not None:
            error = None
            try:
                self.results[index] = self.work(self.items[index])
            except BaseException as problem:
                error = problem
            with self.changed:
                self.used -= self.sizes[index]
                if error:
                    self.error = self.error or error
                    self.order.clear()
                else:
                    self.ended.append(index)
                index = self._next()
                self.active -= index is None
                self._start()
                if not self.active:
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
    """Workers with `threads` threads."""
    if threads == 1:
        yield Workers()
        return
    pool = Pool(threads)
    try:
        yield Workers(pool, threads)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or an interrupt nothing more is begun
