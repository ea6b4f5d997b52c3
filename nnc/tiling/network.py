"""Learning a predictor with one hidden layer: what the linear part leaves is fitted by ReLU units on the whole context.

    a = max(0, U c + b),   prediction = W c + V a

Adam on some of the tiles, the error is taken on all of them; then U, b and V become integers of at most 64 with powers of two
between, and W and V share one shift.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..entropy.scales import MOST
from ..tiles.coding import MAX_BIAS
from .learning import Learned, Tiles, apply_linear, choose_linear

UNITS = (3, 6)
STEPS, RATE = 250, 0.03
FEWEST, SAMPLE = 128, 1 << 11  # tiles below which a hidden layer is not tried, and that it is trained on


def learn_hidden(tiles: Tiles, linear: Learned, units: int) -> Learned:
    """`linear` with a hidden layer of `units`; W stays as it is up to its rounding."""
    layout = linear.layout
    generator = torch.Generator().manual_seed(units)
    scale = float(np.sqrt(np.square(tiles.contexts).mean())) or 1.0
    every = -(-len(tiles.pixels) // SAMPLE)
    contexts = torch.tensor(tiles.contexts[::every] / scale, dtype=torch.float32)
    pixels = torch.tensor(tiles.pixels[::every] / scale, dtype=torch.float32)
    count, matrix = layout.context, np.zeros((layout.context, layout.pixels), np.float32)
    matrix[layout.joins[:, 1], layout.joins[:, 0]] = linear.codes / (1 << linear.shift)
    mask = torch.zeros(count, layout.pixels)
    mask[layout.joins[:, 1], layout.joins[:, 0]] = 1
    w = torch.tensor(matrix, requires_grad=True)
    u = (torch.randn(units, count, generator=generator) / count**0.5).requires_grad_()
    b = torch.zeros(units, requires_grad=True)
    v = torch.zeros(units, layout.pixels, requires_grad=True)
    optimiser = torch.optim.Adam([w, u, b, v], lr=RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        with torch.enable_grad():
            rest = pixels - contexts @ (w * mask) - torch.relu(contexts @ u.T + b) @ v
            loss = rest.square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    whole = (w * mask).detach().double().numpy()[layout.joins[:, 1], layout.joins[:, 0]]
    return _quantize(tiles, linear, whole, *(t.detach().double().numpy() for t in (u, b * scale, v)))


def _quantize(tiles: Tiles, linear: Learned, w: np.ndarray, u: np.ndarray, b: np.ndarray, v: np.ndarray) -> Learned:
    """Integers for all weights.  A unit may be scaled up if what follows it is scaled down: all units have the largest weight of one."""
    size = np.abs(u).max(1) + 1e-9
    hidden_shift = 6
    inner = np.clip(np.round(u / size[:, None] * MOST), -MOST, MOST).astype(np.int64)
    biases = b / size * MOST * 64  # contexts are in 1/64 step
    bias = int(np.clip(np.ceil(np.log2(max(1.0, np.abs(biases).max() / MOST))), 0, MAX_BIAS))
    biases = np.clip(np.round(biases / (1 << bias)), -MOST, MOST).astype(np.int64)
    outer = v * size[:, None]
    largest = max(np.abs(outer).max(initial=0.0), np.abs(w).max(initial=0.0), 1e-9)
    shift = int(np.clip(np.floor(np.log2((MOST + 0.49) / largest)), 0, 7))
    whole, out = (np.clip(np.round(x * (1 << shift)), -MOST, MOST).astype(np.int64) for x in (w, outer))
    active = np.maximum(tiles.contexts @ (inner.T / MOST) + biases * (1 << bias) / (MOST * 64), 0)
    rest = tiles.pixels - apply_linear(tiles.contexts, linear.layout, whole / (1 << shift)) - active @ (out / (1 << shift))
    codes = np.concatenate([whole, inner.reshape(-1), biases, out.reshape(-1)])
    return replace(
        linear, shift=shift, codes=codes, error=float(np.square(rest).mean()), units=len(u), hidden_shift=hidden_shift, bias=bias
    )


def learn_predictors(target: np.ndarray, pixels: np.ndarray, height: int, width: int, most: str) -> list[Learned]:
    """Predictors that are worth a try on this plane, at most a linear one and one with a hidden layer; most: "none", "linear" or "hidden".

    target: float64, in steps; pixels: int32, as decoded without prediction, in 1/64 step."""
    found = choose_linear(target, pixels, height, width) if most != "none" else None
    if found is None:
        return []
    linear, tiles = found
    learned = [linear]
    if most == "hidden" and len(tiles.pixels) >= FEWEST:
        hidden = [learn_hidden(tiles, linear, units) for units in UNITS]
        hidden = [one for one in hidden if len(one.codes) <= target.size]  # readers refuse more
        learned += sorted(hidden, key=lambda one: one.cost(tiles))[:1]
    alone = tiles.cost(float(np.square(tiles.pixels).mean()))
    return [one for one in learned if one.cost(tiles) < alone]
