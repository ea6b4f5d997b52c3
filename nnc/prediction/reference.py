"""Prediction of a tensor from the tensor of the same name in another checkpoint, in the order of FORMAT.md.

    prediction(i, j) = confidence[i] * reference(order_of_rows[i], order_of_columns[j])        float32
    value(i, j) = coded(i, j) + prediction(i, j)

Frames and flow of a video codec, carried over to checkpoints (US20240223817A1): the orders are the flow, the confidence is the
mask that blurs where the flow is not to be trusted, here towards zero.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch

from .permutation import spread

CERTAIN = 8  # steps of a confidence: code -k stands for 1 - k / 8
DIGEST = 8  # bytes


def digest_tensor(tensor: torch.Tensor, number: int) -> bytes:
    """What tells a tensor of the reference from any other; number: id of its dtype."""
    found = blake2b(bytes([number]), digest_size=DIGEST)
    if tensor.numel():
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return found.digest()


def digest_unit(digests: list[bytes]) -> bytes:
    """Of all tensors that the records of a unit take from the reference, in their order."""
    return blake2b(b"".join(digests), digest_size=DIGEST).digest()


def arrange(plane: np.ndarray, rows: np.ndarray | None, columns: np.ndarray | None) -> np.ndarray:
    """The plane of the reference in the order of the tensor; orders as of `decode_permutation`, None for the order as it is."""
    if rows is not None:
        plane = plane[spread(rows, plane.shape[0])]
    return plane if columns is None else plane[:, spread(columns, plane.shape[1])]


def predict(plane: np.ndarray, rows: np.ndarray | None, columns: np.ndarray | None, confidence: np.ndarray) -> np.ndarray:
    """float32 (rows, columns) from the float32 plane of the reference; confidence: codes -8..0 of the rows."""
    prediction = arrange(plane, rows, columns)
    if confidence.any():
        prediction = prediction * ((CERTAIN + confidence) / np.float32(CERTAIN)).astype(np.float32)[:, None]
    return np.ascontiguousarray(prediction, np.float32)
