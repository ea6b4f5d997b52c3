"""Soft rounding of a trellis: the mean over all paths z, each with the weight

    exp(-a * sum((x - z)^2 + lagrangian * bits(z)))

by the forward-backward algorithm (Bahl, Cocke, Jelinek and Raviv, IEEE Trans. IT 20, 1974).  As a grows the mean becomes the path that
the search finds.  With one state and without rates it is `floor(x) + 1/2 + tanh(a r) / 2`: soft rounding but for a factor.

The derivatives are covariances under these weights: a functional F that is a sum over the weights of a path has

    d E[F] / dx = 2 a Cov(z, F)

and `Cov(z, F)` is what the mean changes by if F is added to the exponents: two more runs of the same recursion give the whole gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from ..entropy.parametric import CLASSES
from ..kernels.streams import _grid_value
from ..kernels.viterbi import _bracket
from ..quantize.soft_rounding import soft_round
from ..quantize.trellis import make_trellis
from ..rdo import LOW
from .codec import FrozenCodec

_NUDGE = 0.02  # rms of what is added to the exponents for a derivative: small to the second order, large to rounding
_LEAST = -600.0  # logarithm of the smallest weight of a branch, relative to the largest: above the smallest double


@njit(cache=True, nogil=True)
def _mean_path(x, classes, bits, lagrangian, alpha, linear, square, centre, price, low, shift, labelling, pred, mean, variance):
    """Mean and variance of every weight over all paths from state 0; returns the mean of their bits.

    x: float64 (n,), in steps.  classes: uint8 (n,).  bits: float32 (tables, width).  linear, square, centre: float64 (n,) and price,
    added to the exponents: `linear (z - x) + square (z - centre)^2 + price bits`.  pred: int64 (S, 2), S > 1.
    mean, variance: float64 (n,).
    """
    n = x.shape[0]
    states = pred.shape[0]
    half = states // 2
    last = bits.shape[1] - 1
    value = np.empty((n, 4))
    length = np.empty((n, 4))
    chance = np.empty((n, 4))
    ahead = np.zeros((n + 1, states))
    ahead[0, 0] = 1
    for i in range(n):
        most = -np.inf
        for q in range(2):
            k, _, _ = _bracket(np.float32(x[i]), q, labelling)
            table = 2 * np.int64(classes[i]) + (q if shift == 0 else 1)
            for p in range(2):
                level = -(k + p) if labelling == 1 and x[i] < 0 else k + p
                z = np.float64(_grid_value(level, q, 2, labelling))
                b = np.float64(bits[table, min(max((level >> shift) - low, 0), last)])
                branch = 2 * q + (level & 1)
                value[i, branch] = z
                length[i, branch] = b
                e = z - x[i]
                a = linear[i] * e + square[i] * (z - centre[i]) ** 2 + price * b - alpha * (e * e + lagrangian * b)
                chance[i, branch] = a
                most = max(most, a)
        for branch in range(4):
            chance[i, branch] = np.exp(max(chance[i, branch] - most, _LEAST))
        total = 0.0
        for t in range(states):
            branch = 2 if t >= half else 0
            a = ahead[i, pred[t, 0]] * chance[i, branch] + ahead[i, pred[t, 1]] * chance[i, branch + 1]
            ahead[i + 1, t] = a
            total += a
        for t in range(states):
            ahead[i + 1, t] /= total
    behind = np.ones(states)
    before = np.empty(states)
    weight = np.empty(4)
    rate = 0.0
    for i in range(n - 1, -1, -1):
        weight[:] = 0
        before[:] = 0
        for t in range(states):
            branch = 2 if t >= half else 0
            for p in range(2):
                a = behind[t] * chance[i, branch + p]
                before[pred[t, p]] += a
                weight[branch + p] += ahead[i, pred[t, p]] * a
        total = weight.sum()
        if not total > 0:  # no path in double precision: that of the cheapest branch
            weight[:] = chance[i] == chance[i].max()
            total = weight.sum()
        m = b = s = 0.0
        for branch in range(4):
            w = weight[branch] / total
            e = value[i, branch] - x[i]
            m += w * e
            s += w * e * e
            b += w * length[i, branch]
        mean[i] = x[i] + m
        variance[i] = max(s - m * m, 0.0)
        rate += b
        total = before.sum()
        for t in range(states):
            behind[t] = before[t] / total
    return rate


def soften(codec: FrozenCodec, x: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of every decoded weight, in steps, and the mean of all bits, of a plane x float64 (rows, columns) in steps;
    differentiable.  alpha: sharpness, per squared spacing of one quantizer.  Weights that are not coded are zero.
    """
    if codec.search.states == 1:
        return _soften_scalar(codec, x, alpha)
    return _SoftTrellis.apply(x, codec, alpha / make_trellis(codec.search.states).spacing ** 2)


class _SoftTrellis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codec, alpha):
        mean, variance, rate = _run(codec, x.numpy(), alpha)
        ctx.codec, ctx.alpha, ctx.mean = codec, alpha, mean
        ctx.save_for_backward(x)
        return torch.from_numpy(mean), torch.from_numpy(variance), torch.tensor(rate, dtype=torch.float64)

    @staticmethod
    def backward(ctx, of_mean, of_variance, of_rate):
        (x,) = ctx.saved_tensors
        linear, square, price = of_mean.numpy(), of_variance.numpy(), float(of_rate)
        rms = np.sqrt(np.mean(linear**2) + np.mean(square**2) + price**2)
        if not rms > 0:
            return torch.zeros_like(x), None, None
        nudge = _NUDGE * 2 * ctx.alpha / rms
        up, down = (
            _run(ctx.codec, x.numpy(), ctx.alpha, sign * nudge * linear, sign * nudge * square, ctx.mean, sign * nudge * price)[0]
            for sign in (1, -1)
        )
        return torch.from_numpy((up - down) * (ctx.alpha / nudge)), None, None


def _run(codec, x, alpha, linear=None, square=None, centre=None, price=0.0) -> tuple[np.ndarray, np.ndarray, float]:
    """`_mean_path` of every CTU: mean and variance float64 (rows, columns), bits."""
    flat = [None if plane is None else plane.reshape(-1) for plane in (linear, square, centre)]
    mean, variance = np.zeros(x.size), np.zeros(x.size)
    pred = make_trellis(codec.search.states).predecessors

    def work(part):
        n = len(part.position)
        added = [np.zeros(n) if plane is None else plane[part.position] for plane in flat]
        found = np.empty(n), np.empty(n)
        rate = _mean_path(
            x.reshape(-1)[part.position],
            part.codes,
            codec.bits,
            codec.search.lagrangian,
            alpha,
            *added,
            price,
            LOW,
            codec.scales.shift,
            codec.search.labelling,
            pred,
            *found,
        )
        mean[part.position], variance[part.position] = found
        return rate + codec.scales.shift * n

    rate = sum(codec.run(work, codec.places))
    return mean.reshape(x.shape), variance.reshape(x.shape), rate


def _soften_scalar(codec: FrozenCodec, x: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft rounding; bits and variance as if the two neighbours had the probabilities that give this mean."""
    classes = np.zeros(codec.shape, np.int64)
    for part in codec.places:
        classes.reshape(-1)[part.position] = part.codes
    live = torch.from_numpy((classes > 0).astype(np.float64))
    shift, bits = codec.scales.shift, torch.from_numpy(codec.bits[: 2 * CLASSES + 2].astype(np.float64))
    table = torch.from_numpy(2 * classes + (1 if shift else 0))
    low = torch.floor(x.detach())
    mean = soft_round(x, alpha)
    part = mean - low
    below, above = (bits[table, (((low.long() + more) >> shift) - LOW).clamp(0, bits.shape[1] - 1)] + shift for more in (0, 1))
    return mean * live, part * (1 - part) * live, ((below + part * (above - below)) * live).sum()
