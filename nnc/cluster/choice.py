"""When outliers or a codebook pay: quick tests first, then both ways are coded and the cheaper one stays.

Cost is `error / step^2 + lagrangian * bits` as everywhere, or predicted loss and its price.  What replaces the plain coding of a tensor
must besides save bits at equal error, 6.02 dB to a bit: a Lagrangian of the middle of a range of rates is not quite the slope at
each.  Outliers are looked for where a weight stands far out of its row, by trial on a part of the tensor; codebooks
where weights take few values, or at low rates where the taps of a kernel or neighbouring columns are correlated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import log2, prod

import numpy as np
import torch

from ..encoded import EncodedTensor, Outlying
from ..encoder import encode_coded, make_plane
from ..entropy.explicit import ModelBank
from ..partition.planes import choose_split
from ..points import lay_out
from ..quantize.trellis import make_trellis
from ..powers import Powers, measure_powers
from ..rdo import Search
from .encode import Clusters, encode_codebook
from .outlying import take_outliers
from .rules import largest_weights, relative_weights

PEAK = 20.0  # below, none was chosen on the few networks tried: tables have tails, an escape costs little more than an outlier
FRACTIONS = (3e-4, 1e-3, 3e-3, 1e-2)
TRIED = 1e-3  # where neither this fraction nor a smaller one pays, no larger one is tried
PART = 1 << 15  # weights that fractions are tried on
FEW_VALUES = 256
LOW_RATE = 1.5  # bits per weight, beyond which a codebook of correlated points would take too many centroids
LEAST_WEIGHTS = 1 << 15
LEAST_GAIN = 2.0  # dB that correlations promise
MOST_CENTROIDS = 1024


@dataclass(frozen=True, eq=False)
class Request:
    """A tensor and how it is coded without tools.  encode: that, with or without outliers; powers: of its plane; step, search: of it; price: loss per bit
    where calibration tells the loss, else None; base: float32 plane that it is predicted by, or None; follow: whether the steps
    of the rows follow their scales; outliers, codebook: whether that may be tried."""

    name: str
    tensor: torch.Tensor
    encode: Callable[[Outlying | None], EncodedTensor]
    powers: Powers
    step: float
    search: Search
    price: float | None = None
    base: np.ndarray | None = None
    follow: bool = False
    outliers: bool = True
    codebook: bool = True


def encode_best(request: Request) -> EncodedTensor:
    """The tensor as it is coded without tools, or with outliers or a codebook where those cost less."""
    best = request.encode(None)
    if best.record.kind != "coded":
        return best
    plane = make_plane(request.tensor)[1]
    plane = plane if request.base is None else plane - request.base
    for tried, allowed in ((_try_outliers, request.outliers), (_try_codebook, request.codebook)):
        found = tried(request, best, plane) if allowed else None
        if found and found.record.kind == "coded" and is_better(request, found, best):
            best = found
    return best


def is_better(request: Request, new: EncodedTensor, old: EncodedTensor) -> bool:
    """Whether the cost falls, and bits are saved at equal error."""
    bits = 8 * (len(old.data) - len(new.data) - 24)  # what a record says of tools, at most
    least = 1e-12 * max(old.energy, 1e-300)
    saved = bits + new.record.elements / 2 * log2(max(old.error, least) / max(new.error, least))
    if request.price is None:
        return saved > 0 and (old.error - new.error) / request.step**2 + request.search.lagrangian * bits > 0
    return saved > 0 and old.loss - new.loss + request.price * bits > 0


def _try_outliers(request: Request, plain: EncodedTensor, plane: np.ndarray) -> EncodedTensor | None:
    if not has_peaks(request.powers):
        return None
    relative = relative_weights(plane, request.powers)
    step = request.step
    if request.price is not None:  # the step that makes as large an error
        step = (12 * plain.error / plane.size) ** 0.5 / make_trellis(request.search.states).spacing
    fraction, values = choose_fraction(plane, relative, step, request.search, request.follow)
    outliers = take_outliers(request.tensor, largest_weights(relative, fraction), values, step)
    return request.encode(outliers) if outliers else None


def has_peaks(powers: Powers) -> bool:
    """Whether some weight stands far out of its row (holds half of what a short one has), and out of what rows have in the middle."""
    live = powers.rows > 0
    rms, peaks = np.sqrt(powers.rows[live]), powers.peaks[live]
    share = min(PEAK, (len(powers.columns) / 2) ** 0.5)
    return bool(((peaks > share * rms) & (peaks > PEAK * np.median(rms))).any()) if rms.size else False


def choose_fraction(
    plane: np.ndarray, relative: np.ndarray, step: float, search: Search, follow: bool = False
) -> tuple[float, str]:
    """The fraction of outliers of least cost, 0 if it is none, and how their values are kept: by real bytes, of a part of the plane."""
    if not step > 0:
        return 0.0, "half"
    columns = min(plane.shape[1], PART)
    every = max(1, -(-plane.shape[0] * columns // PART))
    part = torch.from_numpy(np.ascontiguousarray(plane[::every, :columns]))
    scales = np.ascontiguousarray(relative[::every, :columns])
    powers = measure_powers(part.numpy())
    search = replace(search, labelling=0)

    def encode(fraction: float, values: str) -> EncodedTensor:
        outliers = take_outliers(part, largest_weights(scales, fraction), values, step)
        return encode_coded("", part, powers, step, search, ModelBank(), None, follow, outliers=outliers)

    request = Request("", part, lambda outliers: None, powers, step, search)
    best, chosen = encode(0.0, "half"), (0.0, "half")
    for fraction, values in product(FRACTIONS, ("half", "quantized")):
        if fraction > TRIED and not chosen[0]:
            break
        found = encode(fraction, values)
        if found.record.kind == "coded" and best.record.kind == "coded" and is_better(request, found, best):
            best, chosen = found, (fraction, values)
    return chosen


def _try_codebook(request: Request, plain: EncodedTensor, plane: np.ndarray) -> EncodedTensor | None:
    if request.price is not None or request.base is not None or plane.size < LEAST_WEIGHTS:
        return None
    values = np.unique(plane.reshape(-1)[:: max(1, plane.size >> 12)])
    if len(values) <= FEW_VALUES:
        values = np.unique(plane)
        if len(values) <= FEW_VALUES:
            return encode_codebook(request.name, request.tensor, Clusters("scalar", len(values), halves=True), 0.0)
    rate = 8 * len(plain.data) / plane.size
    if rate > LOW_RATE or plain.error <= 0:
        return None
    layouts = _fitting_layouts(request.tensor, plane)
    gain, mode, size = max(((coding_gain(lay.gather(plane)), lay.mode, lay.size) for lay in layouts), default=(0, "", 0))
    if gain < LEAST_GAIN:
        return None
    number = int(min(MOST_CENTROIDS, 2 ** (rate * size + 1.5), rate * plane.size / (40 * size)))
    if number < 4:
        return None
    price = 2 * np.log(2) * plain.error / plane.size
    return encode_codebook(request.name, request.tensor, Clusters(mode, number, size, rounds=8), price)


def _fitting_layouts(tensor: torch.Tensor, plane: np.ndarray) -> list:
    taps = prod(tensor.shape[choose_split(tuple(tensor.shape)) + 1 :])
    layouts = [lay_out("kernel", plane.shape, taps)] if 2 <= taps <= 32 else []
    return layouts + [lay_out("sub-vector", plane.shape, taps, size) for size in (4, 8) if plane.shape[1] % size == 0]


def coding_gain(points: np.ndarray, sample: int = 1 << 13) -> float:
    """Gain in dB that the correlations of the components of points (grid, n) are worth: arithmetic over geometric mean of the
    eigenvalues of their covariance."""
    flat = points.reshape(-1, points.shape[-1])
    flat = flat[:: max(1, len(flat) // sample)].astype(np.float64)
    power = np.square(flat).mean(1, keepdims=True)
    flat = flat / np.sqrt(np.where(power > 0, power, 1) + power.mean())  # points of large norm must not stand for all
    values = np.linalg.eigvalsh(flat.T @ flat / len(flat))
    values = np.maximum(values, 1e-6 * max(values.max(), 1e-300))
    return float(10 * np.log10(values.mean()) - 10 * np.log10(values).mean())
