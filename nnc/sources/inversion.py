"""Inputs drawn from normalisation statistics: noise that is bent until every BatchNorm sees what it has on record from training.

    minimise over the inputs   mean over channels of (v' + (m' - m)^2) / v - 1 - ln(v' / v), summed over the layers

m, v: running mean and variance of a channel, m', v': those of its inputs here.  A few dozen steps of Adam are enough for calibration.
On noise that fits the first layer only, a deep network sees things it was never trained on and its statistics are worse than none: a
ResNet-20 at 3 bits came out at a KL of 1.8 with noise, 0.2 without data, 0.03 with such inputs and 0.03 with images.

Source: Cai et al., "ZeroQ: A novel zero shot quantization framework", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnc.sources.calls import device_of, prepare

STEPS = 40
RATE = 0.1  # of the inputs' spread

Progress = Callable[[int, int, str], None]


def normalisations(network: nn.Module) -> dict[nn.Module, str]:
    """The layers that have a mean and a variance on record, and their names."""
    return {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def divergence(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Of Gaussians with the moments of the inputs (n, channels, ...) from those on record, mean over channels."""
    axes = [0, *range(2, inputs.ndim)]
    mean, var = inputs.mean(axes), inputs.var(axes, unbiased=False) + layer.eps
    known = layer.running_var + layer.eps
    return ((var + (mean - layer.running_mean).square()) / known - 1 - (var / known).log()).mean()


def bend_inputs(
    network: nn.Module, batches: list[Tensor], spread: float, progress: Progress | None
) -> tuple[list[Tensor], float, float]:
    """The batches after the descent, and the mean divergence before and after, summed over the layers.

    The network must be in eval mode.  A batch whose divergence is not finite stays as it is.
    """
    call, found = prepare(network), []
    hooks = [
        module.register_forward_pre_hook(lambda layer, inputs: found.append(divergence(layer, inputs[0])))
        for module in normalisations(network)
    ]
    bent, before, after = [], 0.0, 0.0

    def measure(x: Tensor) -> Tensor:
        found.clear()
        call(x)
        return torch.stack(found).sum()

    try:
        with torch.inference_mode(False), torch.enable_grad():
            for number, batch in enumerate(batches):
                x = batch.clone().to(device_of(network)).requires_grad_(True)
                adam = torch.optim.Adam([x], lr=RATE * spread)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
                first, best, least = None, batch, float("inf")
                for step in range(STEPS + 1):
                    loss = measure(x)
                    value = float(loss.detach())
                    first = value if first is None else first
                    if value < least:
                        best, least = x.detach().cpu().clone(), value
                    if step == STEPS or not value < float("inf"):
                        break
                    (x.grad,) = torch.autograd.grad(loss, [x])
                    adam.step()
                    schedule.step()
                    if progress is not None:
                        progress(number * STEPS + step + 1, len(batches) * STEPS, "making inputs")
                bent.append(best)
                before, after = before + first / len(batches), after + least / len(batches)
    finally:
        for hook in hooks:
            hook.remove()
        found.clear()
    return bent, before, after
