"""Decoded tensors that are kept for a while, since they foretell others of their file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import Lock

import torch

from .unit import Record


def count_bases(units: Iterable[tuple[Record, ...]]) -> Counter:
    """How many tensors of other units each tensor foretells."""
    found: Counter = Counter()
    for records in units:
        own = {record.name for record in records}
        found.update(record.base for record in records if record.base and record.base not in own)
    return found


@dataclass(eq=False)
class Kept:
    """Decoded tensors that foretell others: those to come, most of them; decode: gives the others again.  to_come: how many each foretells; room: bytes."""

    to_come: Counter
    room: float
    decode: Callable[[str], torch.Tensor]
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def watch(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same, those that will be needed kept while there is room."""
        for name, tensor in tensors:
            with self._lock:
                if self.to_come[name] and tensor.nbytes <= self.room:
                    self.room -= tensor.nbytes
                    self._kept[name] = tensor
            yield name, tensor

    def take(self, name: str) -> torch.Tensor:
        with self._lock:
            self.to_come[name] -= 1
            tensor = self._kept.get(name)
            if tensor is not None and not self.to_come[name]:
                self.room += self._kept.pop(name).nbytes
        return self.decode(name) if tensor is None else tensor
