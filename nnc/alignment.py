"""What a reference says of each tensor of a checkpoint: nothing, the same bytes, or a prediction.  Encoder only.

Tensors are met by name.  Where the weights do not resemble their counterpart, its outputs may have been reordered: then rows are
matched by an assignment on their cosines, and the order found is tried for the columns of the tensors to come, whose inputs those
outputs are (symmetry of hidden units: Ainsworth et al., "Git Re-Basin", ICLR 2023).  The confidence of a row is the part of its
counterpart that leaves the least residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from .checkpoint import Checkpoint, TensorSpec
from .decoder import ReferenceReader
from .encoded import Predicted, same_bytes
from .encoder import make_plane
from .entropy.scales import code_bits
from .errors import InvalidArgument
from .prediction.permutation import MAX_LENGTH, encode_permutation
from .prediction.reference import CERTAIN, digest_tensor, predict
from .unit import CODED_DTYPES, DTYPES

RESEMBLES = 0.5  # cosine of a tensor and its counterpart from which on no other order is looked for
WORTH = 0.05  # bits per weight that a prediction must save
TRUSTED = 0.2  # cosine from which on a row is predicted
MOST_ROWS = 4096  # that are assigned: time grows with the cube
CANDIDATES = 8  # orders of a length that are tried, the latest


@dataclass(frozen=True, eq=False)
class Match:
    """Of one tensor.  digest: of its counterpart; same: whether it has the same dtype and bytes; orders: numbers of the permutations
    of rows and columns, from 1; confidence: int16 codes of the rows, None if the tensor is not predicted."""

    digest: bytes
    same: bool = False
    orders: tuple[int, int] = (0, 0)
    confidence: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Alignment:
    """Matches by name, and the permutations that they number; hint: name of the reference for those who will look for it."""

    reader: ReferenceReader
    hint: str = ""
    matches: dict[str, Match] = field(default_factory=dict)
    permutations: list[np.ndarray] = field(default_factory=list)

    def predicted(self, name: str) -> Predicted | None:
        """The prediction of a tensor, made anew; None where there is none."""
        match = self.matches.get(name)
        if match is None or match.confidence is None:
            return None
        base = make_plane(self.reader.read(name))[1]
        plane = predict(base, *(self.order(number) for number in match.orders), match.confidence)
        return Predicted(plane, match.orders, match.confidence, match.digest)

    def order(self, number: int) -> np.ndarray | None:
        return self.permutations[number - 1] if number else None

    def knows(self, order: np.ndarray) -> bool:
        return any(np.array_equal(known, order) for known in self.permutations)

    def number(self, order: np.ndarray) -> int:
        """Of a permutation, which is kept if it is a new one; 0 for the identity."""
        if (order == np.arange(len(order))).all():
            return 0
        if not self.knows(order):
            self.permutations.append(order)
        return next(number for number, known in enumerate(self.permutations, 1) if np.array_equal(known, order))


def align(
    checkpoint: Checkpoint, reader: ReferenceReader, hint: str, progress: Callable[[int, int, str], None] | None = None
) -> Alignment:
    """Compare every tensor with its counterpart, one after the other in the order of the checkpoint.

    InvalidArgument if the two share no tensor.  Memory: two tensors, for those that are assigned also rows^2 numbers.
    """
    found = Alignment(reader, hint)
    total, done = sum(spec.nbytes for spec in checkpoint.specs if not spec.tied_to), 0
    shared = 0
    for spec in checkpoint.specs:
        if spec.tied_to:
            continue
        if reader.specs.get(spec.name, (None, None))[1] == tuple(spec.shape):
            shared += 1
            match = _match(found, spec, checkpoint.read(spec.name), reader.read(spec.name))
            if match:
                found.matches[spec.name] = match
        done += spec.nbytes
        if progress:
            progress(done, total, f"compare {spec.name}")
    if not shared:
        raise InvalidArgument(
            f"{reader.label}: no tensor has the name and the shape of one of the source: it is of another architecture, leave it out"
        )
    return found


def _match(found: Alignment, spec: TensorSpec, tensor: torch.Tensor, base: torch.Tensor) -> Match | None:
    if base.dtype not in DTYPES.values():
        return None
    same = tensor.dtype == base.dtype and same_bytes(tensor, base)
    digest = digest_tensor(base, DTYPES.id(base.dtype))
    if same or spec.dtype not in CODED_DTYPES or base.dtype not in CODED_DTYPES or spec.numel < 2:
        return Match(digest, same)
    weights, other = make_plane(tensor)[1], make_plane(base)[1]
    if not (np.isfinite(weights).all() and np.isfinite(other).all()):
        return Match(digest)
    best: tuple[float, tuple[np.ndarray | None, np.ndarray | None], np.ndarray] | None = None
    for orders in _possible_orders(found, weights, other):
        confidence, saved = trust_rows(weights, predict(other, *orders, np.zeros(len(other), np.int16)))
        saved -= sum(8 * len(encode_permutation(order)) for order in orders if order is not None and not found.knows(order))
        if best is None or saved > best[0]:
            best = saved, orders, confidence
    saved, orders, confidence = best
    if saved < WORTH * weights.size:
        return Match(digest)
    numbers = tuple(0 if order is None else found.number(order) for order in orders)
    return Match(digest, False, numbers, confidence)


def _possible_orders(found: Alignment, weights: np.ndarray, other: np.ndarray):
    """Orders of rows and columns that may hold: as it is, and if that does not fit, those of earlier tensors and new ones."""
    yield None, None
    if _cosine(weights, other) >= RESEMBLES:
        return
    rows, columns = weights.shape
    known = found.permutations[::-1]
    of_rows = [None] + [order for order in known if rows % len(order) == 0][:CANDIDATES]
    of_columns = [None] + [order for order in known if columns % len(order) == 0][:CANDIDATES]
    for column_order in of_columns:
        moved = predict(other, None, column_order, np.zeros(rows, np.int16))
        for row_order in of_rows:
            if row_order is not None or column_order is not None:
                yield row_order, column_order
        if 1 < rows <= MOST_ROWS and columns > 1 and sum(map(len, found.permutations)) + rows <= MAX_LENGTH:
            order = _assign(weights, moved)
            if _cosine(weights, moved[order]) >= RESEMBLES:  # any two planes have rows that are alike by chance
                yield order, column_order


def _cosine(weights: np.ndarray, other: np.ndarray) -> float:
    """Of what sets the weights apart from their mean: the scales of any two norms have much in common."""
    weights, other = weights - weights.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
    product = float(np.einsum("ij,ij->", weights, other, dtype=np.float64))
    norms = float(np.square(weights, dtype=np.float64).sum()) * float(np.square(other, dtype=np.float64).sum())
    return product / np.sqrt(norms) if norms > 0 else 0.0


def _assign(weights: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The order of the rows of `other` with the largest sum of cosines; int64 (rows,)."""
    unit = [
        plane / np.maximum(np.linalg.norm(plane.astype(np.float64), axis=1, keepdims=True), 1e-30) for plane in (weights, other)
    ]
    cosines = np.round(unit[0] @ unit[1].T, 9)  # the last bits of BLAS may depend on the number of threads
    return linear_sum_assignment(cosines, maximize=True)[1].astype(np.int64)


def trust_rows(weights: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes of the confidence of every row, and the bits that the prediction saves if the levels are fine."""
    product = np.einsum("ij,ij->i", weights, prediction, dtype=np.float64)
    before = np.square(weights, dtype=np.float64).sum(1)
    power = np.square(prediction, dtype=np.float64).sum(1)
    part = np.divide(product, power, out=np.zeros_like(product), where=power > 0)
    codes = np.clip(np.round(CERTAIN * part), 0, CERTAIN).astype(np.int16)
    codes[product < TRUSTED * np.sqrt(before * power)] = 0
    after = np.maximum(before - 2 * product * codes / CERTAIN + power * np.square(codes / CERTAIN), 1e-12 * before)
    saved = 0.5 * weights.shape[1] * np.log2(np.divide(before, after, out=np.ones_like(before), where=after > 0))
    saved[before == 0] = 0
    codes[before == 0] = 0
    codes -= CERTAIN
    return codes, float(saved.sum()) - code_bits(codes)
