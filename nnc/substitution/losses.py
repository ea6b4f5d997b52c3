"""Losses of a decoded plane.  Any torch function of the decoded plane, float32 (rows, columns), that gives a scalar will do; these
know besides what noise in one weight costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..calibration.statistics import TensorStatistics
from ..errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class PredictedLoss:
    """`1/2 tr(R E C E^T)` of the error E of a decoded plane.

    original: float32 (m, n); rows, columns: float32 R (m, m) and C (n, n), or their diagonals (m,) and (n,).
    """

    original: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __call__(self, decoded: torch.Tensor) -> torch.Tensor:
        return _Quadratic.apply(decoded - self.original, self.rows, self.columns)

    @property
    def known(self) -> bool:
        """False if no error costs anything, that is, if calibration saw nothing."""
        return bool(self.rows.any()) and bool(self.columns.any())

    @property
    def curvature(self) -> np.ndarray:
        """float64 (m, n): second derivative by each weight."""
        return np.outer(*(_diagonal(side).double().numpy() for side in (self.rows, self.columns)))


class _Quadratic(torch.autograd.Function):
    """The gradient R E C comes with the value: two products, not four."""

    @staticmethod
    def forward(ctx, error, rows, columns):
        right = error * columns if columns.ndim == 1 else error @ columns
        gradient = right * rows[:, None] if rows.ndim == 1 else rows @ right
        ctx.save_for_backward(gradient)
        return 0.5 * (gradient * error).sum(dtype=torch.float64)

    @staticmethod
    def backward(ctx, outer):
        return (outer * ctx.saved_tensors[0]).to(ctx.saved_tensors[0].dtype), None, None


def measure_loss(plane: np.ndarray, statistics: TensorStatistics, damping: tuple[float, float] = (0.0, 0.0)) -> PredictedLoss:
    """Predicted loss of a plane float32 (m, n); damping: share of the diagonals of R and C that is added to them, so that a substitute
    does not lean on what few samples showed (sensitivity.DAMPING).

    Raises InvalidArgument if the statistics are of another shape.
    """
    if plane.shape != statistics.shape:
        raise InvalidArgument(f"the plane has shape {plane.shape}, the statistics are of a plane {statistics.shape}")
    sides = []
    for side, share in zip((statistics.rows, statistics.columns), damping):
        side = torch.from_numpy(np.array(side, np.float32))
        _diagonal(side).mul_(1 + share)
        sides.append(side)
    return PredictedLoss(torch.from_numpy(np.array(plane, np.float32)), *sides)


def squared_loss(plane: np.ndarray) -> PredictedLoss:
    """Half the squared error of the weights: R and C are the identity."""
    rows, columns = plane.shape
    return PredictedLoss(torch.from_numpy(np.array(plane, np.float32)), torch.ones(rows), torch.ones(columns))


def _diagonal(side: torch.Tensor) -> torch.Tensor:
    return side if side.ndim == 1 else side.diagonal()
