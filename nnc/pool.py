"""Threads for tasks that are made of tasks: one that waits for others does those itself which no thread has begun.

So a tensor may hand out its CTUs whether or not anybody is free: a thread without work takes some, else the one that sees to the tensor does them all, and no thread
has to wake up for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from threading import Condition, Thread, local
from typing import Any

MANY = 16  # threads, where their number is not known
_here = local()  # pool: the one whose thread this is


class _Task(Future):
    def __init__(self, pool: Pool, work: Callable[[], object]) -> None:
        super().__init__()
        self.pool = pool
        self.work: Callable[[], object] | None = work

    def run(self) -> None:
        work, self.work = self.work, None
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)

    def result(self, timeout: float | None = None) -> object:
        if getattr(_here, "pool", None) is self.pool and self.pool.take(self):
            self.run()
        return super().result(timeout)


class Pool(Executor):
    """So many threads.  Tasks that came last go first: they are those that others wait for."""

    def __init__(self, threads: int) -> None:
        self.number = threads
        self._open: dict[_Task, bool] = {}  # not begun; its operations are atomic
        self._changed = Condition()
        self._idle = 0
        self._closed = False
        self._threads = [Thread(target=self._serve, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable, /, *arguments, **named) -> Future:
        if self._closed:
            raise RuntimeError("the pool is closed")
        task = _Task(self, lambda: function(*arguments, **named))
        self._open[task] = True
        if self._idle:
            with self._changed:
                self._changed.notify()
        return task

    def take(self, task: _Task) -> bool:
        """Whether the caller has it to do."""
        return self._open.pop(task, False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of Executor: who waits for a task that is cancelled gets CancelledError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        while cancel_futures and self._open:
            try:
                self._open.popitem()[0].cancel()
            except KeyError:
                break
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        _here.pool = self
        while True:
            try:
                task, _ = self._open.popitem()
            except KeyError:
                if not self._wait():
                    return
                continue
            task.run()
            del task  # its result lives no longer than its reader wants

    def _wait(self) -> bool:
        """Whether there may be something to do; False if there will be nothing more."""
        with self._changed:
            self._idle += 1  # first, so that a task that comes now is seen here or tells this thread
            try:
                if not self._open and not self._closed:
                    self._changed.wait()
                return bool(self._open) or not self._closed
            finally:
                self._idle -= 1


def split_work(parts: Sequence[Any], least: int, pool: Executor | None) -> list[Sequence[Any]]:
    """Parts of some work in jobs for a pool, of `least` parts or more: large ones first, since a thread that does them all waits for the others after each of
    them, then ever smaller ones, which others take from the end."""
    threads, jobs, at = getattr(pool, "number", MANY), [], 0
    while at < len(parts):
        number = max(1, least, (len(parts) - at) // (threads + 1))
        jobs.append(parts[at : at + number])
        at += number
    return jobs
