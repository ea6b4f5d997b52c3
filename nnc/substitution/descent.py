"""The descent: gradients of the surrogate, the rule of the step size, three stopping rules, the best true cost kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch

from ..errors import InvalidArgument
from ..quantize.trellis import make_trellis
from .codec import FrozenCodec
from .soft_trellis import soften

Loss = Callable[[torch.Tensor], torch.Tensor]
_MEMORY, _SQUARES = 0.9, 0.99  # of the means over gradients and their squares (Adam: Kingma and Ba, ICLR 2015)
_SHRINK, _SLOWER, _GROW = 0.5, 0.8, 1.25  # of the step size: if the loss rose, at least, at most


@dataclass(frozen=True)
class Options:
    """step_size     first size of a step, in spacings of one quantizer; adapted after every `interval` steps, which are an iteration
    steps         of the descent at most
    interval      steps of an iteration; the sharpness is the same in all of them
    sharpness     of the soft codec, first and last
    slow          relative fall of the loss in one iteration at which the step size stays; it grows below and shrinks above
    threshold     (i) stop when the step size changes by less, in the same units
    constant      (ii) stop when the loss did not change in this many first iterations ...
    tolerance     ... by more than this part
    adjustments   (iii) stop after this many changes of the step size
    spread        how much of the cost of noise in single weights counts: zero lets weights hide between two levels, one takes errors
                  for independent, which they are not where inputs are correlated
    """

    step_size: float = 0.05
    steps: int = 200
    interval: int = 10
    sharpness: tuple[float, float] = (1.2, 60.0)
    slow: float = 0.1
    threshold: float = 1e-5
    constant: int = 3
    tolerance: float = 1e-9
    adjustments: int = 100
    spread: float = 0.3

    def __post_init__(self) -> None:
        positive = ("step_size", "interval", "slow", "constant", "adjustments")
        for name in (*positive, "steps", "threshold", "tolerance", "spread"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0) or (name in positive and value == 0):
                raise InvalidArgument(f"{name} = {value!r}: must be {'positive' if name in positive else '0 or more'}")
        if not 0 < self.sharpness[0] <= self.sharpness[1] < float("inf"):
            raise InvalidArgument(f"sharpness = {self.sharpness!r}: must rise from a positive number to a finite one")


@dataclass(frozen=True)
class Progress:
    """One iteration.  steps: done by its end; sharpness, step_size: during it; surrogate: soft cost at its end; cost: true one."""

    steps: int
    sharpness: float
    step_size: float
    surrogate: float
    cost: float


@dataclass(frozen=True, eq=False)
class Substitute:
    """What to code in place of a plane.

    levels       of every CTU, as `rdo.find_levels`
    plane        float32 (rows, columns), the weights that were quantized to them
    cost_before  loss + price * bits of the weights as given, coded plainly
    cost_start   of the start, the same if none was given
    cost_after   of the levels; never above the other two
    steps        of the descent
    adjustments  changes of the step size
    stopped_by   "step size", "constant loss", "adjustments", "steps", or "nothing known" if the loss knows of no error that costs
    log          one entry per iteration
    """

    levels: list[np.ndarray]
    plane: np.ndarray
    cost_before: float
    cost_start: float
    cost_after: float
    steps: int
    adjustments: int
    stopped_by: str
    log: tuple[Progress, ...]


def substitute(
    plane: np.ndarray,
    loss: Loss,
    codec: FrozenCodec,
    price: float,
    start: tuple[Sequence[np.ndarray], np.ndarray] | None = None,
    options: Options = Options(),
) -> Substitute:
    """Search for weights whose coding costs less than that of a plane float32 (rows, columns).

    loss: scalar of the decoded plane, a torch tensor float32 (rows, columns); price: loss per bit; start: levels and the plane
    they are of, as from `find_levels_with_feedback`.  The same call gives the same result.

    Raises InvalidArgument for a price below zero, a plane of another shape than the codec's, or a loss that is not finite.
    """
    if plane.shape != codec.shape:
        raise InvalidArgument(f"the plane has shape {plane.shape}, the codec is of one of {codec.shape}")
    if not (isfinite(price) and price >= 0):
        raise InvalidArgument(f"price = {price!r}: must be 0 or more")
    price = float(price)

    def measure(levels: Sequence[np.ndarray]) -> float:
        with torch.no_grad():
            return _finite(loss(torch.from_numpy(codec.rebuild(levels)))) + price * codec.count_bits(levels)

    plane = np.ascontiguousarray(plane, np.float32)
    levels = codec.find_levels(plane)
    before = measure(levels)
    best, first = (before, levels, plane), plane
    if start is not None:
        levels = list(start[0])
        begun = measure(levels)
        best, first = min(best, (begun, levels, start[1]), key=lambda found: found[0]), codec.rebuild(levels)
    descent = _Descent(codec, loss, price, options, first)
    log: list[Progress] = []
    stopped = "steps" if getattr(loss, "known", True) else "nothing known"
    constant = adjustments = 0
    while stopped == "steps" and descent.steps < options.steps:
        done = descent.iterate()
        weights = descent.weights()
        levels = codec.find_levels(weights)
        cost = measure(levels)
        best = min(best, (cost, levels, weights), key=lambda found: found[0])
        log.append(Progress(descent.steps, done.sharpness, descent.step_size, done.last, cost))
        constant += done.change <= options.tolerance
        if constant == len(log) == options.constant:
            stopped = "constant loss"
            continue
        used, descent.step_size = descent.step_size, descent.step_size * _adjustment(done.fall, options.slow)
        adjustments += descent.step_size != used
        if abs(descent.step_size - used) < options.threshold:
            stopped = "step size"
        elif adjustments >= options.adjustments:
            stopped = "adjustments"
    return Substitute(
        best[1], best[2], before, before if start is None else begun, best[0], descent.steps, adjustments, stopped, tuple(log)
    )


def _adjustment(fall: float, slow: float) -> float:
    """Factor of the step size after the loss fell by a part: the slower, the larger; small if it rose."""
    if not fall > 0:
        return _SHRINK if fall < 0 else _GROW
    return min(_GROW, max(_SLOWER, (slow / fall) ** 0.25))


def _finite(value: torch.Tensor) -> float:
    number = float(value.detach())
    if not isfinite(number):
        raise InvalidArgument(f"the loss of a decoded plane is {number}: it must be a finite number")
    return number


@dataclass(frozen=True)
class _Iteration:
    """Surrogate costs before its first and before its last step, at one sharpness."""

    sharpness: float
    first: float
    last: float

    @property
    def fall(self) -> float:
        """Of the cost, as part of it."""
        return (self.first - self.last) / max(abs(self.first), 1e-300)

    @property
    def change(self) -> float:
        return abs(self.fall)


class _Descent:
    """The weights in steps, and the means over past gradients."""

    def __init__(self, codec: FrozenCodec, loss: Loss, price: float, options: Options, first: np.ndarray) -> None:
        self.codec, self.loss, self.price, self.options = codec, loss, price, options
        self.grid = torch.from_numpy(codec.steps)
        self.x = torch.from_numpy(first.astype(np.float64)) / self.grid
        self.mean, self.square = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.step_size, self.steps = options.step_size, 0
        curvature = getattr(loss, "curvature", None)
        self.noise = None if curvature is None else torch.from_numpy(curvature) * self.grid.square() * (options.spread / 2)

    def weights(self) -> np.ndarray:
        """float32 (rows, columns)."""
        return (self.x * self.grid).float().numpy()

    def iterate(self) -> _Iteration:
        """Steps at one sharpness, which rises from one iteration to the next by the same factor."""
        options = self.options
        low, high = options.sharpness
        sharpness = low * (high / low) ** min(1.0, self.steps / max(1, options.steps - options.interval))
        costs = []
        for _ in range(min(options.interval, options.steps - self.steps)):
            cost, gradient = self.surrogate(sharpness)
            costs.append(cost)
            self.steps += 1
            self.mean += (1 - _MEMORY) * (gradient - self.mean)
            self.square += (1 - _SQUARES) * (gradient.square() - self.square)
            root = (self.square / (1 - _SQUARES**self.steps)).sqrt()
            spacing = make_trellis(self.codec.search.states).spacing
            move = self.mean / (1 - _MEMORY**self.steps) / root.clamp_min(1e-300)
            self.x = self.x - self.step_size * spacing * move
        return _Iteration(sharpness, costs[0], costs[-1])

    def surrogate(self, sharpness: float) -> tuple[float, torch.Tensor]:
        """Soft cost and its gradient."""
        x = self.x.requires_grad_()
        mean, variance, bits = soften(self.codec, x, sharpness)
        cost = self.loss((mean * self.grid).float()).double() + self.price * bits
        if self.noise is not None:
            cost = cost + (self.noise * variance).sum()
        value = _finite(cost)
        (gradient,) = torch.autograd.grad(cost, x)
        self.x = x.detach()
        return value, gradient
