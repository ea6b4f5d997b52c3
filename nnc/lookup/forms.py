"""The layers that tables can do, in the forms that the rest of the package knows: weighted sums and functions of single values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .window import Window

RISING = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.SELU, nn.Softplus, nn.Softsign, nn.LogSigmoid)
SLOPED = (nn.LeakyReLU, nn.ELU, nn.CELU)
BENT = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LARGEST = (nn.MaxPool1d, nn.MaxPool2d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, *ADAPTIVE)


@dataclass(frozen=True, eq=False)
class Weighted:
    """weight: float32 (outputs, inputs / groups, height, width); bias: float32 (outputs,); learned: not so those of an average."""

    weight: Tensor
    bias: Tensor
    window: Window
    groups: int = 1
    learned: bool = True

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer in float32 with these weights and without its bias."""
        window = self.window
        if window.axes == 0:
            return F.linear(x, weight[:, :, 0, 0])
        x = x[:, :, None] if window.axes == 1 else x
        (top, left), (bottom, right) = window.before, window.after
        out = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, window.strides, 0, window.dilations, self.groups)
        return out[:, :, 0] if window.axes == 1 else out

    def along(self, values: Tensor) -> Tensor:
        """Numbers of the outputs (outputs,), to be added to what `apply` returns."""
        return values if self.window.axes == 0 else values.reshape(-1, *[1] * self.window.axes)


@dataclass(frozen=True, eq=False)
class Pointwise:
    """call: of a float tensor, value by value, channels on axis 1; channels: their number if they differ, else 0; rising: never falls,
    so that the largest of some values can be taken before or after it; line: (scale, shift) of a BatchNorm."""

    call: Callable[[Tensor], Tensor]
    channels: int = 0
    rising: bool = False
    line: tuple[Tensor, Tensor] | None = None


def make_pointwise(module: nn.Module) -> Pointwise | None:
    """A module as a function of single values, None if it is none."""
    kind = type(module)
    if kind in RISING or kind in BENT:
        return Pointwise(lambda x: module(x.clone()), 0, kind in RISING)  # a clone, as it may work in place
    if kind in SLOPED:
        slope = module.negative_slope if kind is nn.LeakyReLU else module.alpha
        return Pointwise(lambda x: module(x.clone()), 0, slope >= 0)
    if kind is nn.PReLU:
        slopes = module.weight.detach().float()
        return Pointwise(lambda x: F.prelu(x, slopes), len(slopes) if len(slopes) > 1 else 0, bool((slopes >= 0).all()))
    if kind in NORMS and module.running_mean is not None:
        ones = torch.ones_like(module.running_var)
        scale = (module.weight.detach() if module.affine else ones) / torch.sqrt(module.running_var + module.eps)
        shift = (module.bias.detach() if module.affine else 0 * ones) - module.running_mean * scale
        line = scale.float(), shift.float()
        return Pointwise(lambda x: x * _along(line[0], x) + _along(line[1], x), len(scale), bool((scale >= 0).all()), line)
    return None


def make_weighted(module: nn.Module, shape: tuple[int, ...]) -> Weighted | None:
    """Weights of a layer for an input of that shape; None if tables cannot do it."""
    kind = type(module)
    if kind is nn.Linear:
        weight = module.weight.detach().float()[:, :, None, None]
        return Weighted(weight, _bias(module, len(weight)), Window(0))
    if kind in CONVOLUTIONS and module.padding_mode == "zeros" and len(shape) == axes_of(kind) + 2:
        weight = module.weight.detach().float()
        kernel, strides, steps = (_pair(value) for value in (module.kernel_size, module.stride, module.dilation))
        before = after = (0, 0)
        if module.padding == "same":
            total = tuple(d * (k - 1) for d, k in zip(steps, kernel))
            before = (total[0] // 2, total[1] // 2)
            after = (total[0] - before[0], total[1] - before[1])
        elif module.padding != "valid":
            before = after = _pair(module.padding, 0)
        window = Window(axes_of(kind), kernel, strides, before, after, steps)
        return Weighted(weight[:, :, None] if weight.ndim == 3 else weight, _bias(module, len(weight)), window, module.groups)
    if kind in AVERAGES and (window := make_window(module, shape)) is not None and not window.ceil:
        if any(window.before) and not module.count_include_pad:
            return None  # windows at the border divide by less
        divisor = getattr(module, "divisor_override", None) or window.taps
        return Weighted(torch.full((shape[1], 1, *window.kernel), 1 / divisor), torch.zeros(shape[1]), window, shape[1], False)
    return None


def make_window(module: nn.Module, shape: tuple[int, ...]) -> Window | None:
    """The window of a pooling layer; None for an adaptive one whose windows differ, or an input without samples."""
    axes = axes_of(type(module))
    if len(shape) != axes + 2:
        return None
    if type(module) in ADAPTIVE:
        wanted = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * axes
        wanted = [length if size is None else size for size, length in zip(wanted, shape[2:])]
        if any(length % size for size, length in zip(wanted, shape[2:])):
            return None
        kernel = _pair(tuple(length // size for size, length in zip(wanted, shape[2:])))
        return Window(axes, kernel, kernel)

    def pair(value: Any, flat: int = 1) -> tuple[int, int]:
        return _pair((value,) if axes == 1 and isinstance(value, int) else value, flat)

    pads = pair(module.padding, 0)
    strides = pair(module.kernel_size if module.stride is None else module.stride)
    return Window(axes, pair(module.kernel_size), strides, pads, pads, pair(getattr(module, "dilation", 1)), module.ceil_mode)


def axes_of(kind: type[nn.Module]) -> int:
    return 1 if kind.__name__.endswith("1d") else 2


def _pair(value: Any, flat: int = 1) -> tuple[int, int]:
    """(height, width) of a setting of one or two axes; flat: of the height of a signal."""
    if isinstance(value, int):
        return value, value
    return (flat, value[0]) if len(value) == 1 else (value[0], value[1])


def _bias(module: nn.Module, outputs: int) -> Tensor:
    return torch.zeros(outputs) if module.bias is None else module.bias.detach().float()


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))
