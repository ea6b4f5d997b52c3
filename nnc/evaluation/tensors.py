"""What each tensor contributes to the loss: predicted from calibration, and measured by exchanging that tensor alone.

To second order the loss is a quadratic form of all errors together; the sum over the tensors leaves out what errors of different
tensors have to do with each other.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnc.calibration.statistics import Statistics
from nnc.checkpoint import open_checkpoint
from nnc.errors import InvalidArgument
from nnc.evaluation.matching import Weight, match_statistics, weights_of
from nnc.evaluation.reference import Reference
from nnc.restoration import load

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TensorLoss:
    """Loss of one tensor's error alone, in the units of the fidelity.

    predicted   from the statistics; None if they have nothing of that tensor
    measured    on the data of a task; None where it was not measured
    """

    name: str
    shape: tuple[int, ...]
    predicted: float | None
    measured: float | None = None


def predict_losses(
    path: str | os.PathLike, reference: str | os.PathLike, statistics: str | os.PathLike | Statistics
) -> dict[str, TensorLoss]:
    """Of every float tensor of a compressed file, by name in the order of the reference, its original; a tied tensor counts once.

    Raises InvalidArgument if the three do not belong together.
    """
    decoded = load(path)
    with open_checkpoint(reference) as original:
        matched = match_statistics(_loaded(statistics), weights_of(original), str(reference))
        tied = {spec.name for spec in original.specs if spec.tied_to}
        weights = [weight for weight in weights_of(original) if weight.name not in tied]
        return {loss.name: loss for loss in _predict(matched, weights, decoded, str(reference))}


def tensor_losses(
    network: nn.Module,
    reference: nn.Module,
    statistics: str | os.PathLike | Statistics,
    measure: Reference | None = None,
    count: int = 0,
    progress: Progress | None = None,
) -> tuple[TensorLoss, ...]:
    """The same for two networks in memory, the largest predicted loss first; the first `count` are measured, too.

    measure   the reference network on the data to measure with
    """
    weights = weights_of(reference)
    matched = match_statistics(_loaded(statistics), weights, "the reference")
    places: dict[tuple, Weight] = {}
    for weight in weights:
        tensor = weight.read()
        places.setdefault((tensor.data_ptr(), weight.shape) if tensor.numel() else (weight.name,), weight)
    decoded = network.state_dict()
    losses = _predict(matched, list(places.values()), decoded, "the reference")
    losses.sort(key=lambda loss: -(loss.predicted if loss.predicted is not None else -1.0))
    if measure is None or not count:
        return tuple(losses)
    probe = copy.deepcopy(reference)
    live = probe.state_dict()
    for number, loss in enumerate(losses[:count]):
        own = live[loss.name]
        with torch.no_grad():
            kept = own.clone()
            own.copy_(decoded[loss.name])
        losses[number] = TensorLoss(loss.name, loss.shape, loss.predicted, measure.compare(probe).value)
        with torch.no_grad():
            own.copy_(kept)
        if progress is not None:
            progress(number + 1, min(count, len(losses)), loss.name)
    return tuple(losses)


def _predict(statistics: Statistics, weights: list[Weight], decoded: Mapping[str, Tensor], label: str) -> list[TensorLoss]:
    losses = []
    for weight in weights:
        theirs = decoded.get(weight.name)
        if theirs is None or tuple(theirs.shape) != weight.shape:
            what = "is missing" if theirs is None else f"has the shape {tuple(theirs.shape)}, not {weight.shape}"
            raise InvalidArgument(f"tensor {weight.name!r} of {label} {what} in the compressed one: they do not belong together")
        entry = statistics.tensors.get(weight.name)
        predicted = None
        if entry is not None:
            error = theirs.detach().cpu().float() - weight.read().detach().cpu().float()
            predicted = entry.loss(error.reshape(entry.shape).numpy())
        losses.append(TensorLoss(weight.name, weight.shape, predicted))
    return losses


def _loaded(statistics: str | os.PathLike | Statistics) -> Statistics:
    return statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
