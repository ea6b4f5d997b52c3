"""Classification: labelled images (or feature rows), top-1 accuracy in per cent."""

from __future__ import annotations

import os
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.data import check_whole, numbers_option, pick, read_arrays, whole_option
from nnc.evaluation.task import Batches, Task

CHANNELS = (1, 3, 4)


def classification(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    batch: int | str = 256,
    limit: int | str | None = None,
    mean: float | str | Sequence[float] | None = None,
    std: float | str | Sequence[float] | None = None,
    name: str = "classification",
) -> Task:
    """Top-1 accuracy of a network that maps (n, ...) float32 to (n, classes) logits.

    images   floating point (n, ...), fed as they are in float32; or uint8, divided by 255: (n, height, width, channels) is
             turned to (n, channels, height, width), (n, height, width) gets one channel
    labels   integers (n,), or None: the task has no metric, only fidelity to a reference
    batch    images at a time
    limit    use only the first so many
    mean, std  (x - mean) / std after that, one number or one per channel

    Raises InvalidArgument for wrong dtypes and shapes, InsufficientData for no images.
    """
    if not images.size:
        raise InsufficientData(f"{name}: no images, shape is {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InvalidArgument(f"{name}: dtype of the images is {images.dtype}, must be uint8 or floating point")
    if images.ndim < 2 or images.dtype == np.uint8 and images.ndim not in (3, 4):
        raise InvalidArgument(f"{name}: shape of the images is {images.shape}, must be (n, ...), and (n, h, w[, c]) for uint8")
    if labels is not None:
        labels = check_whole(labels, f"{name}: labels", 1)
        if len(labels) != len(images):
            raise InvalidArgument(f"{name}: {len(labels)} labels for {len(images)} images")
    size = whole_option("batch", batch)
    count = len(images) if limit is None else min(len(images), whole_option("limit", limit))
    shift = None if mean is None else numbers_option("mean", mean)
    scale = None if std is None else numbers_option("std", std)
    if scale is not None and (scale <= 0).any():
        raise InvalidArgument(f"option std: {std!r} given, must be > 0")
    channels = _arrange(images[:1], name).shape[1]
    for option, value in (("mean", shift), ("std", scale)):
        if value is not None and len(value) not in (1, channels):
            raise InvalidArgument(f"option {option}: {len(value)} numbers given, the images have {channels} channels")

    def make(index: int) -> tuple:
        x = _arrange(images[index * size : min((index + 1) * size, count)], name)
        per_channel = (-1,) + (1,) * (x.ndim - 2)
        if shift is not None:
            x = x - torch.from_numpy(shift).reshape(per_channel)
        return (x if scale is None else x / torch.from_numpy(scale).reshape(per_channel),)

    def hits(index: int, output: Tensor) -> Tensor:
        truth = torch.from_numpy(labels[index * size : min((index + 1) * size, count)])
        if output.ndim != 2 or len(output) != len(truth):
            raise InvalidArgument(f"{name}: the model returned shape {tuple(output.shape)}, must be ({len(truth)}, classes)")
        if int(truth.max()) >= output.shape[1]:
            raise InvalidArgument(f"{name}: a label is {int(truth.max())}, the model has only {output.shape[1]} classes")
        return output.argmax(1).cpu() == truth

    def accuracy(parts: list[Tensor]) -> float:
        return 100.0 * sum(int(part.sum()) for part in parts) / count

    labelled = labels is not None
    return Task(
        name,
        "logits",
        "top-1 %",
        True,
        lambda: Batches(-(-count // size), make),
        accuracy if labelled else None,
        None,
        hits if labelled else None,
    )


def read_classification(
    data: str | os.PathLike,
    *,
    batch: int | str = 256,
    limit: int | str | None = None,
    mean: float | str | Sequence[float] | None = None,
    std: float | str | Sequence[float] | None = None,
) -> Task:
    """The task of an .npz file with `images` (or `x`) and, for the metric, `labels` (or `y`)."""
    arrays = read_arrays(data)
    images = pick(arrays, ("images", "x"), data)
    labels = arrays.get("labels", arrays.get("y"))
    return classification(images, labels, batch=batch, limit=limit, mean=mean, std=std)


def _arrange(images: np.ndarray, name: str) -> Tensor:
    """Float32, channels second."""
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):  # Inf is told of where it is met
            return torch.from_numpy(np.ascontiguousarray(images, np.float32))
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in CHANNELS:
        raise InvalidArgument(
            f"{name}: shape of the uint8 images is {images.shape}, must have 1, 3 or 4 channels, last or second"
        )
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 255
