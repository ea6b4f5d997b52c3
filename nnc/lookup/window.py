"""Where the outputs of a layer look at its inputs: kernel, stride, padding and dilation along two axes.

A vector is a picture of 1 x 1, a signal one of height 1, so that one kernel runs Linear, Conv1d and Conv2d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InvalidArgument

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """axes: of space, 0 for Linear, 1, 2; the others along (height, width): before, after: zeros of padding; ceil: the last window may
    stick out, as `ceil_mode` of pooling has it."""

    axes: int
    kernel: Pair = (1, 1)
    strides: Pair = (1, 1)
    before: Pair = (0, 0)
    after: Pair = (0, 0)
    dilations: Pair = (1, 1)
    ceil: bool = False

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, Pair]:
        """As the kernels take it."""
        return self.strides, self.before, self.dilations, self.kernel

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def size(self, height: int, width: int) -> Pair:
        """Of the output; zero or less if the window is larger than the input."""
        found = []
        for length, kernel, stride, before, after, dilation in zip(
            (height, width), self.kernel, self.strides, self.before, self.after, self.dilations
        ):
            rest = length + before + after - dilation * (kernel - 1) - 1
            count = (-(-rest // stride) if self.ceil else rest // stride) + 1
            if self.ceil and (count - 1) * stride >= length + before:
                count -= 1  # a window that starts in the padding behind
            found.append(count)
        return found[0], found[1]

    def spread(self, x: np.ndarray, name: str) -> np.ndarray:
        """The input as (N, channels, height, width), a view; InvalidArgument for a wrong number of axes."""
        if self.axes == 0:
            if x.ndim < 2:
                raise InvalidArgument(f"{name}: the input has the shape {x.shape}, must be (samples, ..., features)")
            return x.reshape(-1, x.shape[-1], 1, 1)
        if x.ndim != 2 + self.axes:
            raise InvalidArgument(f"{name}: the input has {x.ndim} axes, must have {2 + self.axes}: (samples, channels, ...)")
        return x[:, :, None] if self.axes == 1 else x

    def restore(self, out: np.ndarray, like: tuple[int, ...]) -> np.ndarray:
        """The output (N, channels, rows, columns) with the axes of the layer's input, whose shape is `like`."""
        if self.axes == 0:
            return out.reshape(*like[:-1], out.shape[1])
        return out[:, :, 0] if self.axes == 1 else out
