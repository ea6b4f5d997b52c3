"""Inputs from Python objects: arrays and tensors, and iterables of batches.

A batch is a tuple of arguments, a tensor, or a mapping of keyword arguments as tokenizers make them.  Iterables are read once, into
memory: a loader that shuffles gives other batches the next time.  Labels are left out: the key `labels` of a mapping, and the last
entry of a tuple if the network's forward does not take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.task import Batches, Task
from nnc.sources.calls import takes
from nnc.sources.files import SAMPLES, arrays_draft
from nnc.sources.inputs import Draft, count_samples, limit_samples, take_samples

LABELS = "labels"


def task_draft(task: Task, samples: int | None) -> Draft:
    """The batches of a task."""
    batches = task.batches()
    if not isinstance(batches, (Batches, list)):
        batches = list(batches)
    return Draft(task.name, limit_samples(batches, samples), task.prepare, task.kind)


def object_draft(
    data: object, network: nn.Module, samples: int | None, seed: int, options: Mapping[str, Any], name: str = "data"
) -> Draft:
    """An array or tensor (samples first), or an iterable of batches; InvalidArgument for anything else."""
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy() if data.dtype != torch.bfloat16 else data.detach().float().cpu().numpy()
    if isinstance(data, np.ndarray):
        if not data.ndim or not len(data):
            raise InsufficientData(f"{name}: no samples, shape is {data.shape}")
        return arrays_draft({"": data}, name, network, samples, seed, options)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InvalidArgument(
            f"{name}: a {type(data).__name__} holds no batches; pass a list of argument tuples, tensors or mappings"
        )
    if options:
        raise InvalidArgument(f"{name}: unknown option {next(iter(options))}, batches take none")
    return _batches_draft(data, network, SAMPLES if samples is None else samples, name)


def _batches_draft(data: Iterable, network: nn.Module, most: int, name: str) -> Draft:
    batches: list[tuple] = []
    notes: list[str] = []
    count = 0
    for number, item in enumerate(data):
        batch, note = _as_arguments(item, network, f"{name}: batch {number}")
        _check_finite(batch, f"{name}: batch {number}")
        if note and note not in notes:
            notes.append(note)
        room = most - count
        count += count_samples(batch)
        batches.append(batch if count <= most else take_samples(batch, slice(0, room)))
        if count >= most:
            break
    return Draft(name, batches, notes=tuple(notes))


def _as_arguments(item: object, network: nn.Module, title: str) -> tuple[tuple, str]:
    """Positional arguments, and a note on what was left out."""
    if isinstance(item, (Tensor, np.ndarray)):
        return (_tensor(item),), ""
    if isinstance(item, Mapping):
        entries = {key: _tensor(value) for key, value in item.items() if key != LABELS}
        return (entries,), f"{LABELS} were left out" if LABELS in item else ""
    if isinstance(item, (tuple, list)) and item:
        arguments = tuple(_tensor(value) for value in item)
        if len(arguments) > 1 and not takes(network, arguments) and takes(network, arguments[:-1]):
            return arguments[:-1], "the last entry of each batch was left out as labels"
        return arguments, ""
    raise InvalidArgument(f"{title} is a {type(item).__name__}, must be a tuple of arguments, a tensor or a mapping")


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    with np.errstate(over="ignore"):  # Inf is told of by _check_finite
        return torch.from_numpy(np.ascontiguousarray(value, np.float32 if value.dtype == np.float64 else None))


def _check_finite(batch: Any, title: str) -> None:
    values = batch.values() if isinstance(batch, Mapping) else batch
    for value in values:
        if isinstance(value, Mapping):
            _check_finite(value, title)
        elif isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise InvalidArgument(f"{title} holds NaN or Inf; remove it")
