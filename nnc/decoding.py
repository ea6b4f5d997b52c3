"""All tensors of a compressed checkpoint, decoded unit by unit in several threads: each sees to a whole unit, so that they hardly wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch

from .archive import Archive
from .kept import Kept, count_bases
from .reading import StoredUnit
from .workers import Workers


def decode_units(
    archive: Archive,
    workers: Workers,
    use: Callable[[str, torch.Tensor], Any],
    names: set[str] | None = None,
    room: float = inf,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """`use(name, tensor)`, in some thread, for every tensor that is not an alias; by name.

    names: only units with one of these; room: bytes of tensors that foretell others which may be kept for these, else they are decoded again; progress: of a
    verification.  Raises what `Archive.tensors` does."""
    units = archive.units(names)
    total, nbytes, done = sum(unit.elements for unit in units), sum(unit.nbytes for unit in units), 0
    kept = Kept(count_bases(unit.records for unit in units), room, archive.decode_named)

    def work(unit: StoredUnit) -> list[tuple[str, Any]]:
        tensors = archive.decode(unit, workers.within(unit.elements, total), kept.take)
        return [(name, use(name, tensor)) for name, tensor in kept.watch(tensors)]

    def finished(unit: StoredUnit) -> None:
        nonlocal done
        done += unit.nbytes
        if progress:
            progress(done, nbytes, f"verify {unit.own[-1].name}")

    results: dict[str, Any] = {}
    for later in (False, True):  # those that tensors of other units foretell come after these
        chosen = [unit for unit in units if unit.depends == later]
        for found in workers.map(work, chosen, [unit.elements for unit in chosen], finished):
            results.update(found)
    return results
