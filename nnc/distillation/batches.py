"""Inputs to learn from and inputs held back, to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HELD_BACK = 8  # one sample in so many


def hold_back(batches: Sequence[Any], part: int = HELD_BACK) -> tuple[list, list]:
    """(batches to learn from, batches held back): every `part`-th sample of batches of that many, else every `part`-th batch; nothing
    of a single sample."""
    batches = list(batches)
    sizes = [_samples(batch) for batch in batches]
    if all(size >= part for size in sizes):
        away = [torch.arange(size) % part == part - 1 for size in sizes]
        return [_pick(b, ~a) for b, a in zip(batches, away)], [_pick(b, a) for b, a in zip(batches, away)]
    part = min(part, len(batches))
    if part > 1:
        return [b for n, b in enumerate(batches) if n % part < part - 1], batches[part - 1 :: part]
    if batches and sizes[0] > 1:
        last = torch.arange(sizes[0]) == sizes[0] - 1
        return [_pick(batches[0], ~last)], [_pick(batches[0], last)]
    return batches, []


def _samples(batch: Any) -> int:
    """Length of the first axis, if all tensors of a batch share it, else 1."""
    found: set[int] = set()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.add(len(value) if value.ndim else 1)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            look(item)

    look(batch)
    return found.pop() if len(found) == 1 else 1


def _pick(value: Any, which: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[which.to(value.device)]
    if isinstance(value, (list, tuple)):
        return type(value)(_pick(item, which) for item in value)
    return {key: _pick(item, which) for key, item in value.items()} if isinstance(value, dict) else value
