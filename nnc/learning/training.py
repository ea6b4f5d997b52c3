"""Descent on the true rate: bits of sampled levels under the tables of the bank, interpolated between neighbouring ones.

The position of the scale and the number of the shape are real numbers while a network is trained, and the bits of a level those of the four
tables around, weighted bilinearly; frozen, both are rounded.  (Adam: D. P. Kingma, J. Ba, 2015.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..entropy.fine import FINE, LOWEST, POSITIONS, fine_tables
from ..entropy.network import Network
from ..entropy.parametric import SHAPES
from ..kernels.networks import price_levels
from ..levels import number_inputs
from ..rdo import LOW, WIDTH
from .rounding import clamp_through
from .samples import Samples
from .shadow import Shadow

BATCH = 4096


@dataclass(frozen=True)
class Recipe:
    """hidden: units; bits: K; steps of the descent; rate: of its first steps, falling to a hundredth; activation: of ACTIVATIONS; surrogate: for
    the gradient of clipping."""

    hidden: tuple[int, ...] = (6,)
    bits: int = 6
    steps: int = 600
    rate: float = 0.01
    activation: str = "clip"
    surrogate: bool = True
    rounded: bool = True
    seed: int = 0


@lru_cache(maxsize=1)
def bank_bits() -> torch.Tensor:
    """Bits of level `LOW + column` in every table of the bank, escapes included: float32 (positions, shapes, quantizers, WIDTH)."""
    levels = np.arange(LOW, LOW + WIDTH, dtype=np.int32)
    tables, bits = fine_tables(), np.empty((POSITIONS * SHAPES * 2, WIDTH), np.float32)
    for number in range(len(bits)):
        price_levels(levels, np.full(WIDTH, number, np.int32), tables, 0, bits[number])
    return torch.from_numpy(bits).reshape(POSITIONS, SHAPES, 2, WIDTH)


def soft_rate(outputs: torch.Tensor, scale: torch.Tensor, quantizer: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Bits of levels, (n,).  outputs: (n, 2) of a network; scale: indices 1..36; column: of the level, from LOW on; int64 all three."""
    bits = bank_bits()
    position = clamp_through(FINE * scale + outputs[:, 0] - LOWEST, 0, POSITIONS - 1)
    shape = clamp_through(outputs[:, 1], 0, SHAPES - 1)
    p = position.detach().floor().clamp(0, POSITIONS - 2).long()
    s = shape.detach().floor().clamp(0, SHAPES - 2).long()
    x, y = position - p, shape - s
    low = bits[p, s, quantizer, column] * (1 - y) + bits[p, s + 1, quantizer, column] * y
    high = bits[p + 1, s, quantizer, column] * (1 - y) + bits[p + 1, s + 1, quantizer, column] * y
    return low * (1 - x) + high * x


def train(samples: Samples, kind: str, inputs: Sequence[int], recipe: Recipe, start: Shadow | None = None) -> Shadow:
    """A network for the samples; the same on every run of one machine, whatever its threads.  start: to go on with."""
    with _one_thread():
        values = torch.from_numpy(samples.values[:, list(inputs)]).float()
        shadow = start or Shadow(kind, inputs, recipe.hidden, recipe.bits, recipe.activation, recipe.seed, values)
        scale, quantizer = (torch.from_numpy(part) for part in (samples.scale, samples.quantizer))
        column, weight = torch.from_numpy(samples.column), torch.from_numpy(samples.weight)
        weight = weight / weight.mean()
        optimizer = torch.optim.Adam(shadow.parameters(), recipe.rate, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.01 ** (n / recipe.steps))
        generator = torch.Generator().manual_seed(recipe.seed)
        for _ in range(recipe.steps):
            part = torch.randint(len(values), (min(BATCH, len(values)),), generator=generator)
            outputs = shadow(values[part], recipe.rounded, recipe.surrogate)
            loss = (soft_rate(outputs, scale[part], quantizer[part], column[part]) * weight[part]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        return shadow


def soft_bits(samples: Samples, shadow: Shadow, rounded: bool) -> float:
    """Bits per level of the network in floats, tables interpolated."""
    with torch.no_grad():
        outputs = shadow(torch.from_numpy(samples.values[:, list(shadow.inputs)]).float(), rounded)
        found = soft_rate(outputs, *(torch.from_numpy(part) for part in (samples.scale, samples.quantizer, samples.column)))
        return float((found * torch.from_numpy(samples.weight)).sum()) / float(samples.weight.sum())


def true_bits(samples: Samples, network: Network) -> float:
    """Bits per level under the tables that a decoder takes."""
    found = np.empty(len(samples.values), np.float32)
    levels = (samples.column + LOW).astype(np.int32)
    price_levels(levels, number_inputs(network, samples.values), fine_tables(), 0, found)
    return float((found * samples.weight).sum() / samples.weight.sum())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of floats in one order, on every machine with these instructions."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
