"""Inputs without data for networks of images and other numbers: noise, bent to the network's normalisation statistics.

    x = a z + b        z: noise of variance one, along space with a spectrum 1/f, as photographs have it (Field, 1987)

a and b are scalars such that the inputs of the first BatchNorm have the mean and the variance that it has on record; then the inputs
are bent to what all of them have (inversion.py).  Without a BatchNorm a = 1, b = 0: such noise says little of a network, and real
inputs do much better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument
from nnc.evaluation.data import whole_option
from nnc.evaluation.pretrained import first_line
from nnc.evaluation.runner import FAILURES, evaluating
from nnc.sources.calls import device_of, prepare
from nnc.sources.inputs import Draft
from nnc.sources.inversion import Progress, bend_inputs, divergence, normalisations

OPTIONS = ("batch", "shape")
COUNT, BATCH, PROBE = 128, 32, 16  # samples in all, in a batch, to adapt the scale with
SIDES = (224, 32, 28, 64, 96, 128, 16, 8, 48, 160, 192, 256, 299, 384)  # of images, in the order of trying
LENGTHS = (1024, 128, 256, 512, 100, 64, 4096, 16000)  # of signals
SHARED = 0.8  # of the power of the noise that all channels share


def draw_noise(
    network: nn.Module, samples: int | None, seed: int, options: Mapping[str, Any], progress: Progress | None = None
) -> Draft:
    """Samples of the network's input shape; InvalidArgument if that cannot be found and no option `shape` gives it."""
    shape, found = parse_shape(options["shape"]) if "shape" in options else find_shape(network), "shape" not in options
    if reason := "" if found else _refusal(network, shape):
        raise InvalidArgument(f"option shape: the network does not run on samples of shape {shape} ({reason}); give another")
    count = COUNT if samples is None else samples
    size = whole_option("batch", options.get("batch", BATCH))

    def draw(first: int, number: int) -> Tensor:
        return torch.stack([_noise(shape, seed, first + row) for row in range(number)])

    scale, shift, fitted = _fit_scale(network, draw(0, min(count, PROBE)))
    batches = [scale * draw(start, min(size, count - start)) + shift for start in range(0, count, size)]
    text = "x".join(map(str, shape))
    notes = [f"{count} samples of noise of shape {text}{': give the option shape for another' if found else ''}"]
    if fitted:
        with evaluating(network):
            batches, before, after = bend_inputs(network, batches, scale, progress)
        notes.append(f"bent to the statistics of all normalisation layers, at a divergence of {after:.3g}, before {before:.3g}")
    else:
        notes.append("the network has no BatchNorm that would tell what its inputs are like: real inputs do much better")
    return Draft("noise", [(batch,) for batch in batches], notes=tuple(notes))


def parse_shape(value: str | Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample, also as text "3,32,32"."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else (value,)
    return tuple(whole_option("shape", part) for part in parts)


def find_shape(network: nn.Module) -> tuple[int, ...]:
    """The shape that the first linear or convolutional layer allows and the network runs on.

    A network that runs on several sizes gets 224 pixels if its first layer skips pixels, else 32.
    """
    config = getattr(network, "config", None)
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if isinstance(side, int) and isinstance(channels, int):
        return channels, side, side
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    first = next((module for module in network.modules() if isinstance(module, layers)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(first.in_features,)]
    elif isinstance(first, nn.Conv1d):
        shapes = [(first.in_channels, length) for length in LENGTHS]
    elif isinstance(first, nn.Conv2d):
        sides = SIDES if max(first.stride) > 1 else SIDES[1:] + SIDES[:1]
        shapes = [(first.in_channels, side, side) for side in sides]
    for shape in shapes:
        if not _refusal(network, shape):
            return shape
    raise InvalidArgument("the shape of the network's inputs cannot be found: give it as the option shape=3,32,32, or data")


def _refusal(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Why the network does not run on samples of a shape; "" if it does."""
    with evaluating(network), torch.inference_mode():
        try:
            prepare(network)(torch.zeros(2, *shape, device=device_of(network)))
        except FAILURES as error:
            return first_line(error)
    return ""


def _noise(shape: tuple[int, ...], seed: int, number: int) -> Tensor:
    """One sample of variance one."""
    source = torch.Generator().manual_seed(seed * 1_000_003 + number)
    white = torch.randn(shape, generator=source)
    if len(shape) < 2:
        return white
    if shape[0] > 1:
        white = (1 - SHARED) ** 0.5 * white + SHARED**0.5 * torch.randn((1, *shape[1:]), generator=source)
    axes = tuple(range(1, len(shape)))
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(size) for size in shape[1:]), indexing="ij")
    radius = torch.stack(frequencies).square().sum(0).sqrt()
    spectrum = 1 / radius.clamp(min=1 / max(shape[1:]))
    spectrum /= spectrum.square().mean().sqrt()
    return torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * spectrum, dim=axes).real.contiguous()


class _Reached(Exception):
    """The first BatchNorm was reached: the rest of the network need not run."""

    def __init__(self, divergence: float) -> None:
        self.divergence = divergence


def _fit_scale(network: nn.Module, noise: Tensor) -> tuple[float, float, str]:
    """a, b and the name of the first BatchNorm that the data meets; "" if there is none."""
    names = normalisations(network)
    reached: list[str] = []

    def meet(module: nn.Module, arguments: tuple) -> None:
        reached[:] = [names[module]]
        raise _Reached(float(divergence(module, arguments[0].float())))

    call = prepare(network)

    def measure(octaves: float, offset: float) -> float:
        """Of the scale 2^octaves, and a shift in units of it."""
        scale = 2.0**octaves
        try:
            call(scale * noise + scale * offset)
        except _Reached as found:
            return found.divergence
        return float("inf")

    hooks = [module.register_forward_pre_hook(meet) for module in names]
    try:
        with evaluating(network), torch.inference_mode():
            grid = [(float(a), float(b)) for a in range(-8, 9, 2) for b in (-2, -1, 0, 1, 2)]
            best = min((measure(*point), point) for point in grid)
            for width in (1.0, 0.5, 0.25, 0.125):
                a, b = best[1]
                near = [(a + i * width, b + j * width) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
                best = min(best, *((measure(*point), point) for point in near))
    finally:
        for hook in hooks:
            hook.remove()
    if not reached or best[0] == float("inf"):
        return 1.0, 0.0, ""
    a, b = best[1]
    return 2.0**a, 2.0**a * b, reached[0]
