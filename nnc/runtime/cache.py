"""Decoded weights that are kept, at most so many bytes of them.

Networks use their layers in turn, the worst case for "forget what was used longest ago": of a ring that is a little larger than the
cache nothing would ever be found.  So what is kept stays, and gives way only if a whole round has passed without it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock

import torch


@dataclass(eq=False)
class WeightCache:
    """limit: bytes; cycle: uses after which what was not used is stale; held: bytes now, those that are promised to a decoder included."""

    limit: float
    cycle: int
    held: int = 0
    clock: int = 0
    _kept: dict[Hashable, tuple[torch.Tensor, int]] = field(default_factory=dict)  # the tensor, when it was used last
    _lock: Lock = field(default_factory=Lock)

    def find(self, key: Hashable) -> torch.Tensor | None:
        """One use of a weight."""
        with self._lock:
            self.clock += 1
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept[key] = (found[0], self.clock)
            return found[0]

    def holds(self, key: Hashable) -> bool:
        return key in self._kept

    def reserve(self, size: int) -> bool:
        """Whether `size` bytes may be held from now on, by `keep` or until `release`; what is stale gives way."""
        with self._lock:
            if size > self.limit:
                return False
            if self.held + size > self.limit:
                used = {key: used for key, (_, used) in self._kept.items() if used + self.cycle < self.clock}
                for key in sorted(used, key=used.get):
                    if self.held + size <= self.limit:
                        break
                    self._forget(key)
            if self.held + size > self.limit:
                return False
            self.held += size
            return True

    def keep(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Keep a tensor whose bytes were reserved."""
        with self._lock:
            if key in self._kept:  # two threads decoded it
                self.held -= tensor.nbytes
            else:
                self._kept[key] = (tensor, self.clock)

    def release(self, size: int) -> None:
        with self._lock:
            self.held -= size

    def clear(self) -> None:
        with self._lock:
            for key in list(self._kept):
                self._forget(key)

    def _forget(self, key: Hashable) -> None:
        self.held -= self._kept.pop(key)[0].nbytes
