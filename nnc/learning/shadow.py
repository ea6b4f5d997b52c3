"""The float parameters behind an integer network (US11869221B2, claims 13 and 14).

Each layer has floats H', b', c' and computes with

    H = Q(H' / s_H)      s_H: so that the largest entry of every row of H' becomes 2^(K - 1) - 1, the end of the K-bit range
    b = Q(2^K b')        b' = r(c') t, with t in units of v, so that the steps of a descent fit
    c = Q(2^K r(c'))     r = exp

with `Q` rounding to nearest.  With `rounded` off nothing is rounded at all: the float network that integers are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..entropy.network import MAX_DIVISOR, MAX_INPUT, OUTPUTS, RANGE, Layer, Network
from .rounding import activate, round_through

FIRST_SHAPE = 2.0  # what a new network says everywhere: the scale of the sum rule, and this shape
_LEAST_DEVIATION = 8  # of an input
_BIAS_PART, _DIVISOR_PART = 16, 64  # of the least divisor of a layer: the grids of the biases and of the divisors of its file


class ShadowLayer(nn.Module):
    """One layer; activation: None for the last."""

    def __init__(self, inputs: int, outputs: int, bits: int, activation: str | None, generator: torch.Generator) -> None:
        super().__init__()
        self.bits, self.activation = bits, activation
        spread = inputs**-0.5 if activation else 0.02
        start = spread * torch.randn(outputs, inputs, generator=generator)
        scale = start.abs().amax(1) / self.most
        offset = torch.full((outputs,), 0.25 if activation == "clip" else 0.0) if activation else torch.tensor([0.0, FIRST_SHAPE / MAX_INPUT])
        self.kernel = nn.Parameter(start)
        self.divisor = nn.Parameter(-torch.log(scale * 2**bits))
        self.offset = nn.Parameter(offset)

    @property
    def most(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def integers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """H, b and c before they are rounded."""
        scale = self.kernel.abs().amax(1, keepdim=True).detach().clamp(min=1e-9) / self.most
        r = torch.exp(self.divisor)
        return self.kernel / scale, 2**self.bits * r * MAX_INPUT * self.offset, (2**self.bits * r).clamp(1, MAX_DIVISOR)

    @torch.no_grad()
    def suit(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Begin with units of equal spread for inputs of these means and deviations."""
        self.kernel *= MAX_INPUT / 4 / deviation.clamp(min=_LEAST_DEVIATION)
        self.divisor.copy_(-torch.log(self.kernel.abs().amax(1) / self.most * 2**self.bits))
        self.offset.copy_((0.5 if self.activation == "clip" else 0.0) - self.kernel @ mean / MAX_INPUT)

    def forward(self, u: torch.Tensor, rounded: bool = True, surrogate: bool = True) -> torch.Tensor:
        h, b, c = self.integers()
        if rounded:
            h, b, c = round_through(h), round_through(b), round_through(c)
        v = (u @ h.T + b) / c
        v = round_through(v) if rounded and self.activation else v  # what the last one says is interpolated, later rounded
        v = v.clamp(-RANGE, RANGE - 1) if self.activation == "sigmoid" else v
        return activate(v, self.activation, surrogate) if self.activation else v

    def freeze(self) -> Layer:
        """The integers, biases and divisors on a coarser grid that costs nothing."""
        with torch.no_grad():
            h, b, c = (part.double().numpy() for part in self.integers())
        step = 1 << max(0, int(c.min() / _DIVISOR_PART).bit_length() - 1)
        divisor = np.clip(np.floor((c - 1) / step + 0.5) * step + 1, 1, MAX_DIVISOR).astype(np.int64)
        fine = 1 << max(0, int(divisor.min() // _BIAS_PART).bit_length() - 1)
        bias = (np.floor(b / fine + 0.5) * fine).astype(np.int64)
        return Layer(np.floor(h + 0.5).astype(np.int64), bias, divisor, self.activation)


class Shadow(nn.Module):
    """inputs: numbers of those that are used; hidden: units of the layers between; bits: K; values: (n, inputs), which the first layer is
    suited to: its sums begin around the middle of the range of its units."""

    def __init__(self, kind: str, inputs: Sequence[int], hidden: Sequence[int], bits: int, activation: str = "clip", seed: int = 0,
                 values: torch.Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind, self.inputs, self.bits = kind, tuple(inputs), bits
        sizes = [len(self.inputs), *hidden, OUTPUTS]
        acts = [activation] * len(hidden) + [None]
        self.layers = nn.ModuleList(ShadowLayer(*pair, bits, act, generator) for *pair, act in zip(sizes, sizes[1:], acts))
        if values is not None and hidden:
            self.layers[0].suit(values.mean(0), values.std(0))

    def forward(self, u: torch.Tensor, rounded: bool = True, surrogate: bool = True) -> torch.Tensor:
        """The inputs that are used, float (n, inputs), to (n, 2): what is added to the position, and the shape."""
        for layer in self.layers:
            u = layer(u, rounded, surrogate)
        return u

    def freeze(self) -> Network:
        return Network(self.kind, self.inputs, self.bits, tuple(layer.freeze() for layer in self.layers))
