"""A plane and how it is to be coded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .calibration.statistics import TensorStatistics
from .centre_choice import QuantizedCentres
from .encoded import PLAIN, Layout, Outlying, Predicted
from .prediction.memory import MemoryCodes
from .quantize.steps import StepCodes, rebuild_steps
from .sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class Job:
    """A plane and how it is to be coded: levels `grid_step` apart, times what `steps` of rows and columns say; `step` is what the
    record says.  sensitivity: of a plane whose errors are fed back (if `feedback`), or whose loss is to be told; price: loss per bit, for
    a search by gradients; predicted: what the plane was reduced by; layout: in which it is; outliers: that were taken from it, only of a plain
    layout; target: what is quantized in place of the plane, None for that itself; worths: float32 (columns,), what squared errors of the columns
    count, in steps^2, None if the same; centres: those of the layout, as they are coded."""

    plane: np.ndarray
    split: int
    grid_step: float
    step: float
    follow: bool = False
    steps: tuple[StepCodes, StepCodes] | None = None
    sensitivity: Sensitivity | None = None
    feedback: bool = True
    price: float | None = None
    predicted: Predicted | None = None
    layout: Layout = PLAIN
    outliers: Outlying | None = None
    target: np.ndarray | None = None
    worths: np.ndarray | None = None
    centres: QuantizedCentres | None = None

    @property
    def transposed(self) -> bool:
        return self.layout.transposed or bool(self.steps and self.sensitivity and self.sensitivity.transposed)

    @property
    def walk(self) -> MemoryCodes | None:
        """What foretells columns from those before, in a closed loop."""
        return self.layout.memory if isinstance(self.layout.memory, MemoryCodes) else None

    @cached_property
    def wanted(self) -> np.ndarray:
        """The plane that is quantized: what centres leave, or a target in its place."""
        if self.centres:
            return self.centres.codes.residual(self.plane)
        return self.plane if self.target is None else self.target

    @property
    def fed(self) -> bool:
        """Whether errors are fed back."""
        return bool(
            self.feedback and self.steps and self.sensitivity and (self.sensitivity.upper.size or self.sensitivity.down.size)
        )

    @property
    def statistics(self) -> TensorStatistics:
        """Of the plane as it is coded."""
        found = self.sensitivity.statistics
        return found.transposed if self.transposed else found

    def relative_plane(self, plane: np.ndarray) -> np.ndarray:
        """Weights over the factors of their rows and columns: what scales are fitted to."""
        if self.steps is None:
            return plane
        rows, columns = (rebuild_steps(codes, 1.0) for codes in self.steps)
        relative = plane * (1 / rows)[:, None]
        relative *= 1 / columns
        return relative
