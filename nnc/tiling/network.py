"""Learning a predictor with one hidden layer: what the linear part leaves is fitted by ReLU units on the whole context.

    a = max(0, U c + b),   prediction = W c + V a

The units to start from are taken one by one from a pool (each pixel of the context with either sign, and random directions): that one
whose part beyond the linear one explains most of what is left.  Adam then moves all weights, on some of the tiles, the error is taken on all of them; then U, b and V become integers of at most 64 with powers of two
between, and W and V share one shift.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..entropy.scales import MOST
from ..tiles.coding import MAX_BIAS
from .learning import Learned, Tiles, apply_linear, choose_linear

UNITS = (4, 8)
STEPS, RATE = 120, 0.02
DRAWN = 64  # directions at random among the units to start from
FEWEST, SAMPLE = 128, 1 << 11  # tiles below which a hidden layer is not tried, and that it is trained on


def learn_hidden(tiles: Tiles, linear: Learned, units: int) -> Learned:
    """`linear` with a hidden layer of `units`, all weights learned anew; the pairs that W joins stay."""
    layout = linear.layout
    scale = float(np.sqrt(np.square(tiles.contexts).mean())) or 1.0
    every = -(-len(tiles.pixels) // SAMPLE)
    contexts = torch.tensor(tiles.contexts[::every] / scale, dtype=torch.float32)
    pixels = torch.tensor(tiles.pixels[::every] / scale, dtype=torch.float32)
    count, matrix = layout.context, np.zeros((layout.context, layout.pixels), np.float32)
    matrix[layout.joins[:, 1], layout.joins[:, 0]] = linear.codes / (1 << linear.shift)
    mask = torch.zeros(count, layout.pixels)
    mask[layout.joins[:, 1], layout.joins[:, 0]] = 1
    left = pixels - contexts @ torch.tensor(matrix)
    u, b = (torch.tensor(x, dtype=torch.float32) for x in _first_units(contexts.double().numpy(), left.double().numpy(), units))
    both = torch.cat([contexts, torch.relu(contexts @ u.T + b)], 1)
    moment = both.T @ both
    solved = torch.linalg.solve(moment + 1e-4 * moment.trace() / len(moment) * torch.eye(len(moment)), both.T @ left)
    w, v = torch.tensor(matrix) + solved[:count] * mask, solved[count:].clone()
    optimiser = torch.optim.Adam([part.requires_grad_() for part in (w, u, b, v)], lr=RATE)
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


def _first_units(contexts: np.ndarray, rest: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """U and b to start from; rest: pixels without their linear prediction."""
    count = contexts.shape[1]
    drawn = np.random.default_rng(units).standard_normal((DRAWN, count)) / count**0.5
    directions = np.repeat(np.concatenate([np.eye(count), -np.eye(count), drawn]), 3, 0)
    biases = np.tile((0.0, -0.6, 0.6), len(directions) // 3)
    active = np.maximum(contexts @ directions.T + biases, 0)
    known = np.linalg.qr(np.concatenate([contexts, np.ones((len(contexts), 1))], 1))[0]
    beyond = active - known @ (known.T @ active)
    chosen: list[int] = []
    for _ in range(units):
        size = np.square(beyond).sum(0)
        worth = np.square(beyond.T @ rest).sum(1) / np.maximum(size, 1e-3 * size.max() + 1e-12)
        best = int(np.argmax(worth))
        chosen.append(best)
        axis = beyond[:, best] / np.sqrt(size[best] + 1e-12)
        rest, beyond = rest - np.outer(axis, axis @ rest), beyond - np.outer(axis, axis @ beyond)
    return directions[chosen], biases[chosen]


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
