"""The inputs of a matrix product, position by position: rows of a linear layer, unfolded patches of a convolution.

Both give chunks (positions, groups, columns) in a fixed order, and bring a gradient at the output into the same order as
(positions, groups, outputs per group).  Patches are made a bounded number at a time.
"""

from __future__ import annotations

from math import prod
from typing import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 24  # values of patches at a time


class Rows:
    """Inputs (..., columns) of a product along their last axis; `left` if the outputs are (..., outputs, positions)."""

    groups = 1

    def __init__(self, x: Tensor, left: bool = False) -> None:
        self.x, self.left = x.detach(), left
        self.columns = x.shape[-1]

    @property
    def positions(self) -> int:
        return self.x.numel() // self.columns if self.columns else 0

    def chunks(self) -> Iterator[Tensor]:
        rows = self.x.reshape(-1, 1, self.columns)
        yield from rows.split(max(1, CHUNK // max(1, self.columns)))

    def gradient(self, g: Tensor) -> Tensor:
        if self.left:
            g = g.transpose(-1, -2)
        return g.reshape(self.positions, 1, -1)


class Patches:
    """Inputs (samples, channels, *space) of a convolution; columns are channels per group times kernel, as in its weights."""

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        groups: int,
    ):
        self.x, self.kernel, self.stride, self.dilation, self.groups = x.detach(), kernel, stride, dilation, groups
        self.single = x.dim() == len(kernel) + 1
        spans = [d * (k - 1) for k, d in zip(kernel, dilation)]
        if padding == "valid":
            padding = [0] * len(kernel)
        self.padding = [(s // 2, s - s // 2) for s in spans] if padding == "same" else [(p, p) for p in padding]
        space = x.shape[-len(kernel) :]
        self.space = [(n + sum(p) - s - 1) // t + 1 for n, p, s, t in zip(space, self.padding, spans, stride)]
        self.channels = x.shape[-len(kernel) - 1]
        self.columns = self.channels // groups * prod(kernel)
        self.positions = (1 if self.single else len(x)) * prod(self.space)

    def chunks(self) -> Iterator[Tensor]:
        v = self.x.unsqueeze(0) if self.single else self.x
        axes = len(self.kernel)
        v = F.pad(v, [n for pair in reversed(self.padding) for n in pair])
        for axis, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation)):
            v = v.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        v = v.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        lines = max(1, CHUNK // max(1, prod(self.space[1:]) * self.groups * self.columns))
        parts = (
            v.split(lines // self.space[0]) if lines >= self.space[0] else (p for one in v.split(1) for p in one.split(lines, 1))
        )
        for part in parts:
            yield part.reshape(-1, self.groups, self.columns)

    def gradient(self, g: Tensor) -> Tensor:
        g = g.unsqueeze(0) if self.single else g
        return g.movedim(1, -1).reshape(self.positions, self.groups, -1)
