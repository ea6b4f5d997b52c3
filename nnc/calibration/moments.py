"""Sums over the uses of one tensor, and the Kronecker product that is made of them.

For a product y = W x with gradients g at y, over all positions t of all samples:

    R_i = sum_t g_ti^2          C = sum_t h_t x_t x_t^T          h_t = (|g_t|^2 / mean |g|^2)^focus / its mean

scaled so that sum_i R_i tr(C) is the trace of the Fisher matrix: either sum_t |g_t|^2 |x_t|^2, positions taken as independent
(as in Grosse & Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016), or the mean square
of the gradient itself, |sum_t g_t x_t^T|^2, which knows that the positions of one sample act together: under an average over
space it is many times larger.  For a table of vectors C is the second moment of the gradients, R the counts; for all others the
Fisher matrix is a diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .places import Slot
from .statistics import TensorStatistics

SPREAD = 0.5  # share of uses that every row of a table gets, used or not, and of the mean in the diagonal of a vector


class Product:
    """One use of a matrix in one batch: inputs, and sums of squared gradients over the draws of labels."""

    def __init__(self, slot: Slot, inputs, source: Tensor) -> None:
        self.slot, self.inputs, self.source = slot, inputs, source
        self.version = source._version
        self.power: Tensor | None = None  # (positions, groups)
        self.rows: Tensor | None = None  # (outputs,)

    def receive(self, gradient: Tensor) -> None:
        squares = self.inputs.gradient(gradient.detach().float()).square()
        power, rows = squares.sum(-1), squares.sum(0).flatten()
        self.power = power if self.power is None else self.power + power
        self.rows = rows if self.rows is None else self.rows + rows


class Lookup:
    """One use of a table in one batch: row numbers, and the second moment of gradients over the draws of labels."""

    def __init__(self, slot: Slot, ids: Tensor) -> None:
        self.slot, self.ids = slot, ids.detach().flatten()
        self.moment: Tensor | None = None

    def receive(self, gradient: Tensor) -> None:
        g = gradient.detach().float().reshape(-1, gradient.shape[-1])
        moment = g.t() @ g
        self.moment = moment if self.moment is None else self.moment + moment


@dataclass(frozen=True, eq=False)
class Factors:
    """One summand of a tensor's Fisher matrix, as in TensorStatistics, in the units of the loss; float64."""

    axis: int
    full: np.ndarray
    diagonal: np.ndarray
    uses: int


class ProductMoment:
    """Sums of a matrix over batches."""

    def __init__(self, slot: Slot, outputs: int, columns: int) -> None:
        device = slot.place.tensor.device
        self.slot = slot
        self.c = torch.zeros(columns, columns, device=device)
        self.rows = torch.zeros(outputs, device=device)
        self.total, self.uses, self.joint = 0.0, 0, 0.0

    def add(self, uses: list[Product], draws: int, focus: float) -> None:
        """All uses of one batch that had gradients."""
        power = [use.power / draws for use in uses]
        mean = sum(float(p.sum(dtype=torch.float64)) for p in power) / max(1, sum(p.numel() for p in power))
        flat = focus == 0 or mean == 0
        weights = [torch.ones_like(p) if flat else (p / mean).pow(focus) for p in power]
        norm = sum(float(w.sum(dtype=torch.float64)) for w in weights) / max(1, sum(w.numel() for w in weights))
        for use, p, h in zip(uses, power, weights):
            self.rows[use.slot.row : use.slot.row + len(use.rows)] += use.rows / draws
            self.uses += use.inputs.positions
            start = 0
            for chunk in use.inputs.chunks():
                x = chunk.detach().float().reshape(-1, use.inputs.columns)
                part = slice(start, start + len(chunk))
                start += len(chunk)
                self.c.addmm_((x if flat else x * (h[part].reshape(-1, 1) / norm)).t(), x)
                self.total += float(p[part].reshape(-1).double() @ x.square().sum(1).double())

    def factors(self, joint: bool) -> Factors:
        c, rows = self.c.double().cpu().numpy(), self.rows.double().cpu().numpy()
        c *= _ratio(self.joint if joint else self.total, rows.sum() * np.trace(c))
        plane = self.slot.place.plane
        if self.slot.swapped:
            return Factors(0, c, rows, self.uses) if plane == (len(c), len(rows)) else Factors(1, c, rows, self.uses)
        if plane == (len(rows), len(c)):
            return Factors(1, c, rows, self.uses)
        if len(rows) > 1:  # one input: the plane is one row, of the outputs
            return Factors(0, c, rows, self.uses)
        return _project(c * rows[0], plane, self.uses)


class LookupMoment:
    """Sums of a table over batches."""

    def __init__(self, slot: Slot) -> None:
        rows, columns = slot.place.plane
        device = slot.place.tensor.device
        self.c = torch.zeros(columns, columns, device=device)
        self.counts = torch.zeros(rows, dtype=torch.float64, device=device)
        self.joint = 0.0

    def add(self, uses: list[Lookup], draws: int) -> None:
        for use in uses:
            self.c += use.moment / draws
            self.counts += torch.bincount(use.ids, minlength=len(self.counts))

    def factors(self, joint: bool) -> Factors:
        counts, c = self.counts.cpu().numpy(), self.c.double().cpu().numpy()
        c *= _ratio(self.joint, np.trace(c)) if joint else 1.0
        return Factors(1, c, (counts + SPREAD) / (counts + SPREAD).sum(), int(counts.sum()))


class ElementMoment:
    """Squared gradients of every element, summed over batches: labels are independent, so cross terms vanish on average."""

    def __init__(self, tensor: Tensor, plane: tuple[int, int]) -> None:
        self.squares = torch.zeros(plane, device=tensor.device)
        self.uses = 0

    def add(self, gradient: Tensor, draws: int) -> None:
        self.squares += gradient.detach().float().reshape(self.squares.shape).square() / draws

    def factors(self, joint: bool) -> Factors:
        squares = self.squares.double().cpu().numpy()
        rows, columns = squares.sum(1), squares.sum(0)
        if len(rows) == 1:  # few draws: an element alone is uncertain
            return Factors(1, (1 - SPREAD) * columns + SPREAD * columns.mean(), np.ones(1), self.uses)
        return Factors(1, columns * _ratio(1.0, columns.sum()), rows, self.uses)


def combine(parts: list[Factors], scale: float) -> TensorStatistics:
    """One Kronecker product for the sum of several, of the same trace, times `scale`.

    C = sum_k mean(R_k) C_k, R = sum_k R_k tr(C_k) / tr(C).  Where the axes differ the heavier ones stay full.
    """
    if len(parts) > 1:
        traces = [p.diagonal.sum() * _trace(p.full) for p in parts]
        axis = max((0, 1), key=lambda a: sum(t for t, p in zip(traces, parts) if p.axis == a))
        parts = [
            p if p.axis == axis else Factors(axis, p.diagonal, p.full if p.full.ndim == 1 else np.diag(p.full), p.uses)
            for p in parts
        ]
        matrix = any(p.full.ndim == 2 for p in parts)
        c = sum(p.diagonal.mean() * (np.diag(p.full) if matrix and p.full.ndim == 1 else p.full) for p in parts)
        rows = sum(p.diagonal * _trace(p.full) for p in parts) * _ratio(1.0, _trace(c))
        parts = [Factors(axis, c, rows, sum(p.uses for p in parts))]
    (p,) = parts
    return TensorStatistics(p.axis, p.full.astype(np.float32), (p.diagonal * scale).astype(np.float32), p.uses)


def _project(c: np.ndarray, plane: tuple[int, int], uses: int) -> Factors:
    """A matrix over all elements of a plane (one output channel) as the Kronecker product that keeps more of it."""
    m, n = plane
    blocks = c.reshape(m, n, m, n)
    found = []
    for axis, inner in ((1, np.einsum("ijik->ijk", blocks)), (0, np.einsum("jiki->ijk", blocks))):
        full, diagonal = inner.sum(0), np.einsum("ijj->i", inner)
        kept = _ratio(
            float(np.einsum("i,ijk,jk->", diagonal, inner, full)), float(np.linalg.norm(diagonal) * np.linalg.norm(full))
        )
        found.append((kept, Factors(axis, full * _ratio(1.0, np.trace(full)), diagonal, uses)))
    return max(found, key=lambda pair: pair[0])[1]


def _trace(full: np.ndarray) -> float:
    return float(full.sum() if full.ndim == 1 else np.trace(full))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
