"""What a descent takes for the gradients of an integer network (US11869221B2; US20240104786A1, claim 15).

Rounding passes the gradient on as it is.  Clipping to 0..2^A - 1 would stop it where a unit is saturated, so that the unit could never
come back; in its place stands a scaled generalized Gaussian density,

    dg/dv = exp(-alpha^beta |2 v / (2^A - 1) - 1|^beta)

with alpha such that its integral is that of the gradient it stands for.
"""

from __future__ import annotations

from math import gamma

import torch

from ..entropy.network import MAX_INPUT, RANGE, activation_table

BETA = 4.0
ALPHA = gamma(1 / BETA) / BETA


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(context, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x + 0.5)  # as floor((2 a + c) / (2 c)) rounds

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(context, v: torch.Tensor, surrogate: bool) -> torch.Tensor:
        context.save_for_backward(v)
        context.surrogate = surrogate
        return v.clamp(0, MAX_INPUT)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (v,) = context.saved_tensors
        if not context.surrogate:
            return gradient * ((v >= 0) & (v <= MAX_INPUT)), None
        return gradient * torch.exp(-((ALPHA * (2 * v / MAX_INPUT - 1).abs()) ** BETA)), None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(context, v: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(v)
        return torch.from_numpy(activation_table("sigmoid").copy())[v.long().clamp(-RANGE, RANGE - 1) + RANGE].to(v.dtype)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        (v,) = context.saved_tensors
        y = torch.sigmoid(v * (0.6931471805599453 / 64))
        return gradient * (MAX_INPUT * 0.6931471805599453 / 64) * y * (1 - y)


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Rounded to integers; the gradient is that of x."""
    return _Round.apply(x)


def activate(v: torch.Tensor, name: str, surrogate: bool = True) -> torch.Tensor:
    """Activation of integers v (as floats); surrogate: with the density for the gradient of clipping, else its own."""
    return _Clip.apply(v, surrogate) if name == "clip" else _Sigmoid.apply(v)


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(context, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        context.save_for_backward(x)
        context.limits = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,), (low, high) = context.saved_tensors, context.limits
        outward = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(outward, 0), None, None


def clamp_through(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Cut to low..high; the gradient is that of x but where it leads further out, so that nothing gets stuck outside or runs away."""
    return _Bound.apply(x, low, high)
