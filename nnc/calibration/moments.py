"""Sums over the uses of one tensor, and the Kronecker product that is made of them.

For a product y = W x with gradients g at y, over all positions t of all samples:

    R = sum_t g_t g_t^T          C = sum_t h_t x_t x_t^T

h_t is 0 for positions that no gradient reaches (padding), the same for all others of a batch, and 1 on average over the batch.  R and
C are scaled so that tr(R) tr(C) is the trace of the Fisher matrix: either sum_t |g_t|^2 |x_t|^2, positions taken as independent
(as in Grosse & Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016), or the mean square
of the gradient itself, |sum_t g_t x_t^T|^2, which knows that the positions of one sample act together: under an average over
space it is many times larger.  For a table of vectors C is the second moment of the gradients, R the counts; for all others the
Fisher matrix is a diagonal.  R is a diagonal, too, where there are more than WIDEST outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .places import Slot
from .statistics import TensorStatistics

WIDEST = 4096  # outputs whose second moments are kept as a matrix
UNSEEN = 0.15  # of the mean count is added to that of every row of a table: other data use other rows
SPREAD = 0.5  # share of uses that every row of a table gets, used or not, and of the mean in the diagonal of a vector


class Product:
    """One use of a matrix in one batch: inputs, and sums of squared gradients over the draws of labels."""

    def __init__(self, slot: Slot, inputs, source: Tensor) -> None:
        self.slot, self.inputs, self.source = slot, inputs, source
        self.version = source._version
        self.power: Tensor | None = None  # (positions, groups)
        self.rows: Tensor | None = None  # (outputs, outputs) or (outputs,)

    def receive(self, gradient: Tensor) -> None:
        g = self.inputs.gradient(gradient.detach().float())
        power, g = g.square().sum(-1), g.flatten(1)
        rows = g.t() @ g if g.shape[1] <= WIDEST else g.square().sum(0)
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

    rows: np.ndarray
    columns: np.ndarray
    samples: tuple[int, int]

    @property
    def trace(self) -> float:
        return _trace(self.rows) * _trace(self.columns)


class ProductMoment:
    """Sums of a matrix over batches."""

    def __init__(self, slot: Slot, outputs: int, columns: int) -> None:
        device = slot.place.tensor.device
        self.slot = slot
        self.c = torch.zeros(columns, columns, device=device)
        self.rows = torch.zeros((outputs, outputs) if outputs <= WIDEST else (outputs,), device=device)
        self.total = 0.0
        self.uses = self.gradients = 0

    def add(self, uses: list[Product], draws: int) -> None:
        """All uses of one batch that had gradients."""
        power = [use.power / draws for use in uses]
        share = sum(int((p > 0).sum()) for p in power) / max(1, sum(p.numel() for p in power)) or 1.0
        for use, p in zip(uses, power):
            h = (p > 0).float() / share
            mine = slice(use.slot.row, use.slot.row + len(use.rows))
            if self.rows.ndim == 1:
                self.rows[mine] += (use.rows if use.rows.ndim == 1 else use.rows.diagonal()) / draws
            else:
                self.rows[mine, mine] += use.rows / draws
            reached = int((p > 0).flatten(1).any(1).sum()) if p.ndim > 1 else int((p > 0).sum())
            self.uses += reached
            self.gradients += reached * draws
            start = 0
            for chunk in use.inputs.chunks():
                x = chunk.detach().float().reshape(-1, use.inputs.columns)
                part = slice(start, start + len(chunk))
                start += len(chunk)
                self.c.addmm_((x * h[part].reshape(-1, 1)).t(), x)
                self.total += float(p[part].reshape(-1).double() @ x.square().sum(1).double())

    def factors(self, energy: float | None) -> Factors:
        c, rows = self.c.double().cpu().numpy(), self.rows.double().cpu().numpy()
        c *= _ratio(self.total if energy is None else energy, _trace(rows) * np.trace(c))
        plane = self.slot.place.plane
        if self.slot.swapped:
            straight = plane == (len(c), len(rows))
            samples = (self.uses, self.gradients) if straight else (self.gradients, self.uses)
            return Factors(c, rows, samples) if straight else Factors(rows, c, samples)
        if plane == (len(rows), len(c)):
            return Factors(rows, c, (self.gradients, self.uses))
        if len(rows) > 1:  # one input: the plane is one row, of the outputs
            return Factors(c, rows, (self.uses, self.gradients))
        return _project(c * rows.sum(), plane, self.uses)


class LookupMoment:
    """Sums of a table over batches."""

    def __init__(self, slot: Slot) -> None:
        rows, columns = slot.place.plane
        device = slot.place.tensor.device
        self.c = torch.zeros(columns, columns, device=device)
        self.counts = torch.zeros(rows, dtype=torch.float64, device=device)
        self.uses = self.gradients = 0

    def add(self, uses: list[Lookup], draws: int) -> None:
        for use in uses:
            self.c += use.moment / draws
            self.counts += torch.bincount(use.ids, minlength=len(self.counts))
            self.uses += len(use.ids)
            self.gradients += len(use.ids) * draws

    def factors(self, energy: float | None) -> Factors:
        counts, c = self.counts.cpu().numpy(), self.c.double().cpu().numpy()
        c *= 1.0 if energy is None else _ratio(energy, np.trace(c))
        counts = counts + SPREAD + UNSEEN * counts.mean()
        return Factors(counts / counts.sum(), c, (self.uses, self.gradients))


class ElementMoment:
    """Squared gradients of every element, summed over batches: labels are independent, so cross terms vanish on average."""

    def __init__(self, tensor: Tensor, plane: tuple[int, int]) -> None:
        self.squares = torch.zeros(plane, device=tensor.device)
        self.uses = 0

    def add(self, gradient: Tensor, draws: int) -> None:
        self.squares += gradient.detach().float().reshape(self.squares.shape).square() / draws

    def factors(self, energy: None = None) -> Factors:
        squares = self.squares.double().cpu().numpy()
        rows, columns = squares.sum(1), squares.sum(0)
        if len(rows) == 1:  # few draws: an element alone is uncertain
            return Factors(np.ones(1), (1 - SPREAD) * columns + SPREAD * columns.mean(), (self.uses, self.uses))
        return Factors(rows, columns * _ratio(1.0, columns.sum()), (self.uses, self.uses))


def combine(parts: list[Factors], scale: float) -> TensorStatistics:
    """One Kronecker product for the sum of several, of the same trace, times `scale`.

    C = sum_k tr(R_k) C_k, R = sum_k R_k tr(C_k), over the trace.
    """
    total = sum(part.trace for part in parts)
    rows = _sum([(part.rows, _trace(part.columns)) for part in parts]) * _ratio(scale, total)
    columns = _sum([(part.columns, _trace(part.rows)) for part in parts])
    samples = sum(part.samples[0] for part in parts), sum(part.samples[1] for part in parts)
    return TensorStatistics(rows.astype(np.float32), columns.astype(np.float32), samples)


def _sum(sides: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Weighted sum of matrices and diagonals."""
    full = any(side.ndim == 2 for side, _ in sides)
    return sum((np.diag(side) if full and side.ndim == 1 else side) * weight for side, weight in sides)


def _project(c: np.ndarray, plane: tuple[int, int], uses: int) -> Factors:
    """A matrix over all elements of a plane (one output channel) as a Kronecker product of the same trace."""
    blocks = c.reshape(*plane, *plane)
    rows, columns = np.einsum("ijkj->ik", blocks), np.einsum("ijil->jl", blocks)
    return Factors(rows, columns * _ratio(1.0, np.trace(columns)), (uses, uses))


def _trace(side: np.ndarray) -> float:
    return float(side.sum() if side.ndim == 1 else np.trace(side))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
