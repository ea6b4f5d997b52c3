"""Inputs for a network in two parts: one to calibrate with, one held back to measure with.

The part held back is every eighth sample of a batch; of batches of fewer samples it is every eighth batch, one at least.  So it is like
the other part also where the data change on the way.  A single sample cannot be divided: then nothing is held back, and there is
no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnc.evaluation.task import Batches, Task

SHARE = 8  # one part in so many is held back


@dataclass(frozen=True)
class Draft:
    """Inputs before the network has run on any of them.

    name     for tables and messages
    batches  argument tuples with a length, the same ones each time
    prepare  as in a Task; None: calls.prepare
    kind     of the output where the source says it; None: found from the output
    notes    what a reader of the summary should know
    """

    name: str
    batches: Batches | list[tuple]
    prepare: Callable[[nn.Module], Callable[..., Any]] | None = None
    kind: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What a network is calibrated with.

    calibration  batches to gather statistics from, as a Task without a metric
    held_back    batches to measure with, None if there is only one sample
    samples      in the calibration part
    notes        how the kind was found, what was left out
    """

    calibration: Task
    held_back: Task | None
    samples: int
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.calibration.name

    @property
    def kind(self) -> str:
        """ "logits", "unit" or "values"."""
        return self.calibration.kind


def divide_inputs(draft: Draft, kind: str, prepare: Callable[[nn.Module], Callable[..., Any]], notes: tuple[str, ...]) -> Inputs:
    """The two parts of a draft."""
    first, last = _divide(draft.batches)
    task = Task(draft.name, kind, "", False, lambda: first, None, prepare)
    held_back = None if last is None else replace(task, batches=lambda: last)
    if last is None:
        notes += ("a single sample cannot be divided: nothing is held back, so the divergence is not measured",)
    return Inputs(task, held_back, sum(map(count_samples, first)), notes)


def count_samples(batch: Any) -> int:
    """Length of the first axis of the first tensor of a batch; 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((count_samples(entry) for entry in entries if isinstance(entry, (Tensor, Mapping, tuple, list))), 1)


def take_samples(batch: Any, which: slice | Tensor) -> Any:
    """Those samples of a batch, by a slice or a mask: of every tensor whose first axis is as long as that of the first one."""
    count = count_samples(batch)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[which] if value.ndim and len(value) == count else value
        if isinstance(value, Mapping):
            return {key: cut(entry) for key, entry in value.items()}
        return type(value)(map(cut, value)) if type(value) in (tuple, list) else value

    return cut(batch)


def limit_samples(batches: Batches | list[tuple], most: int | None) -> Batches | list[tuple]:
    """The first batches with at most so many samples together; the last one may be cut."""
    if most is None:
        return batches
    kept: list[tuple] = []
    for batch in batches:
        room = most - sum(map(count_samples, kept))
        if room <= 0:
            break
        kept.append(batch if count_samples(batch) <= room else take_samples(batch, slice(0, room)))
    return kept


def _divide(batches: Batches | list[tuple]) -> tuple[Batches | list[tuple], Batches | list[tuple] | None]:
    count = len(batches)
    samples = count_samples(next(iter(batches)))
    if samples >= SHARE:
        if isinstance(batches, Batches):
            full = count - (count_samples(batches.make(count - 1)) < SHARE)  # the last one may be short
            return Batches(count, lambda index: _others(batches.make(index))), Batches(full, lambda index: _held(batches.make(index)))
        return list(map(_others, batches)), [_held(batch) for batch in batches if count_samples(batch) >= SHARE]
    if count > 1:
        part = min(SHARE, count)
        if isinstance(batches, Batches):
            make, held = batches.make, count // part
            return Batches(count - held, lambda index: make(index + min(index // (part - 1), held))), Batches(held, lambda index: make(index * part + part - 1))
        return [batch for index, batch in enumerate(batches) if index % part < part - 1], batches[part - 1 :: part]
    only = next(iter(batches))
    if samples < 2:
        return [only], None
    return [take_samples(only, slice(0, samples - 1))], [take_samples(only, slice(samples - 1, samples))]


def _held(batch: Any) -> Any:
    return take_samples(batch, slice(SHARE - 1, None, SHARE))


def _others(batch: Any) -> Any:
    return take_samples(batch, torch.arange(count_samples(batch)) % SHARE != SHARE - 1)
