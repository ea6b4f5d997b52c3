"""Large arrays whose memory is used again.

Memory that a program has given back is cleared by the system before it hands it out again, and on virtual machines the host may have to find it first: compressing
a checkpoint spent up to a fifth of its time on that, and threads wait for each other there.  While memory is `reused`, what arrays that nobody holds any more
lay in serves the next ones.  What is kept and what is in use are together never more than has been in use at once, but for some megabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from threading import Lock

import numpy as np

LEAST = 1 << 17  # bytes of an array from which on its memory is kept
CLOSE = 2  # times as large as it must be, memory is still used for an array
SPARE = 1 << 24  # bytes that may be kept beside what is in use


@dataclass(eq=False)
class _Keeper:
    """users: how many ask for reuse; used, most: bytes in use, and as they were at most; kept: free memory, what came back first in front; back: memory that
    has come back since, from any thread and at any moment (of a finalizer), which appending to a deque bears."""

    users: int = 0
    used: int = 0
    most: int = 0
    kept: list[np.ndarray] = field(default_factory=list)
    back: deque[np.ndarray] = field(default_factory=deque)
    lock: Lock = field(default_factory=Lock)

    def take(self, size: int) -> np.ndarray:
        """uint8, at least `size` bytes."""
        with self.lock:
            self._collect()
            fitting = [memory for memory in self.kept if size <= memory.nbytes <= CLOSE * size]
            if fitting:
                found = min(fitting, key=lambda memory: memory.nbytes)
                self.kept = [memory for memory in self.kept if memory is not found]
                self.used += found.nbytes
                self.most = max(self.most, self.used)
                return found
            self.used += size
            self.most = max(self.most, self.used)
            held = self.used + sum(memory.nbytes for memory in self.kept)
            while self.kept and held > self.most + SPARE:
                held -= self.kept.pop(0).nbytes
        try:
            return np.empty(size, np.uint8)
        except MemoryError:
            with self.lock:
                self.used -= size
            raise

    def _collect(self) -> None:
        while self.back:
            memory = self.back.popleft()
            self.used -= memory.nbytes
            self.kept.append(memory)

    def close(self) -> None:
        with self.lock:
            self.back.clear()
            self.kept.clear()


_current: _Keeper | None = None
_changing = Lock()


class _Lease:
    """What arrays and tensors in lent memory hold on to; when the last one is gone, the memory comes back."""

    def __init__(self, keeper: _Keeper, size: int) -> None:
        self.keeper = keeper
        self.memory = keeper.take(size)
        self.__array_interface__ = self.memory.__array_interface__

    def __del__(self) -> None:
        if hasattr(self, "memory") and self.keeper.users:
            self.keeper.back.append(self.memory)


@contextmanager
def reused() -> Iterator[None]:
    """Memory of large arrays of `empty` is used again in this time, in all threads."""
    global _current
    with _changing:
        _current = keeper = _current or _Keeper()
        keeper.users += 1
    try:
        yield
    finally:
        with _changing:
            keeper.users -= 1
            if not keeper.users:
                _current = None
                keeper.close()


def empty(shape: int | tuple[int, ...], dtype: type | np.dtype | str, order: str = "C") -> np.ndarray:
    """As `numpy.empty`."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    size = prod(shape) * dtype.itemsize
    keeper = _current
    if size < LEAST or keeper is None:
        return np.empty(shape, dtype, order=order)
    memory = np.asarray(_Lease(keeper, size))
    return memory[:size].view(dtype).reshape(shape, order=order)


def contiguous(array: np.ndarray) -> np.ndarray:
    """As `numpy.ascontiguousarray`."""
    if array.flags.c_contiguous:
        return array
    out = empty(array.shape, array.dtype)
    np.copyto(out, array)
    return out
