"""Soft rounding, its inverse, the posterior mean behind a noisy channel, and gradients without variance.

    s_a(y)    = floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2)),  r = y - floor(y) - 1/2
    s_a^-1(t) = floor(t) + 1/2 + atanh(2 tanh(a / 2) (t - floor(t) - 1/2)) / a
    r_a(z)    = E[Y | s_a(Y) + U = z] = s_a^-1(z - 1/2) + 1/2           U uniform on [-1/2, 1/2), density of Y flat

a = 0 is the identity, a > 0 ever more like rounding.  The derivative of `E[h(y + U)]` is `h(y + 1/2) - h(y - 1/2)`, for any h: one
sample of the noise then gives a gradient whose variance does not grow with a (Agustsson and Theis, "Universally quantized neural
compression", NeurIPS 2020; CN115668777A).
"""

from __future__ import annotations

from collections.abc import Callable
from math import tanh

import torch

from ..errors import InvalidArgument

IDENTITY = 1e-3  # below this sharpness float32 does not tell soft rounding from the identity


def soft_round(y: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_a(y) of a float tensor, any shape; differentiable, slope `soft_round_slope`.

    Raises InvalidArgument for a negative sharpness, as all functions here do.
    """
    if _is_identity(alpha):
        return y
    low = torch.floor(y)
    return low + 0.5 + torch.tanh(alpha * (y - low - 0.5)) / (2 * tanh(alpha / 2))


def soft_round_slope(y: torch.Tensor, alpha: float) -> torch.Tensor:
    """The derivative of s_a at y."""
    if _is_identity(alpha):
        return torch.ones_like(y)
    return alpha / (2 * tanh(alpha / 2)) / torch.cosh(alpha * (y - torch.floor(y) - 0.5)).square()


def soft_round_inverse(t: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_a^-1(t) of a float tensor; exact to rounding while exp(a) can be told from one in its dtype, and inside the cell beyond."""
    if _is_identity(alpha):
        return t
    low = torch.floor(t)
    most = 1 - torch.finfo(t.dtype).eps
    return low + 0.5 + (torch.atanh((2 * tanh(alpha / 2) * (t - low - 0.5)).clamp(-most, most)) / alpha).clamp(-0.5, 0.5)


def posterior_mean(z: torch.Tensor, alpha: float) -> torch.Tensor:
    """r_a(z): what to decode `z = s_a(y) + u` to for the least squared error."""
    return soft_round_inverse(z - 0.5, alpha) + 0.5


def apply_with_noise(function: Callable[[torch.Tensor], torch.Tensor], y: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`function(y + noise)` of every element, the gradient that of the expectation over noise uniform on [-1/2, 1/2).

    function: of each element alone; it need not be differentiable.  y, noise: float, same shape.
    """
    return _Expected.apply(y, noise, function)


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, noise, function):
        ctx.save_for_backward(function(y + 0.5) - function(y - 0.5))
        return function(y + noise)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def _is_identity(alpha: float) -> bool:
    if not alpha >= 0:
        raise InvalidArgument(f"sharpness {alpha!r} of soft rounding: must be 0 or more")
    return alpha < IDENTITY
