"""Gradients at the outputs whose second moment is the Fisher matrix, drawn from the network's own output distribution.

    logits   sqrt(p) (e - sqrt(p) <sqrt(p), e>), p = softmax(y): covariance diag(p) - p p^T, that of softmax(y) - one-hot(label) for
             a label drawn from p.  A sure network would draw other labels than its first choice too rarely to be measured; noise
             e of variance one has the same second moment and needs far fewer draws.
    unit     e: y is the mean of a Gaussian of variance one
    values   e, and a factor of 2 since the mean squared error has no 1/2

With a temperature T the distribution of logits is softmax(y / T): a network that is sure of its calibration inputs, since it learnt
them by heart, will be less so of others, and its outputs would seem not to matter.

Half the mean square change along such gradients is KL, 1 - cosine or the mean squared error to second order
(Martens, "New insights and perspectives on the natural gradient method", JMLR 2020).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument

KINDS = ("logits", "unit", "values")
FACTORS = {"logits": 1.0, "unit": 1.0, "values": 2.0}
ENOUGH = 4096  # predictions times draws
ENOUGH_GRADIENTS = 32  # batches times draws: each gives one gradient of whole samples
MOST_DRAWS = 8
TEMPERATURES = tuple(2.0 ** (n / 2) for n in range(7))  # 1 to 8
SURE = 0.1  # mean entropy of the predictions, of the most that is possible: below, a network is too sure
CHUNK = 1 << 22  # logits at a time


def count_predictions(output: Tensor, kind: str) -> int:
    """Predictions (logits), vectors (unit) or single values in an output; InvalidArgument for logits or vectors without axes."""
    if kind == "values":
        return output.numel()
    if not output.ndim:
        raise InvalidArgument(f"the output is a single number, kind {kind!r} needs (..., size); use kind 'values'")
    return output.numel() // output.shape[-1] if output.shape[-1] else 0


def choose_draws(predictions: int, batches: int) -> int:
    """Draws of labels per batch, 1 to 8, such that there are enough of predictions and of gradients where that can be had."""
    return min(MOST_DRAWS, max(1, -(-ENOUGH // max(1, predictions)), -(-ENOUGH_GRADIENTS // max(1, batches))))


class Doubt:
    """Finds the lowest temperature at which a network is not too sure of itself."""

    def __init__(self) -> None:
        self.entropies = np.zeros(len(TEMPERATURES))
        self.most = 0.0

    def add(self, output: Tensor) -> None:
        """Logits of a batch."""
        logits = output.detach().flatten(0, -2)
        for part in logits.split(max(1, CHUNK // logits.shape[-1])):
            for number, temperature in enumerate(TEMPERATURES):
                p = (part.float() / temperature).softmax(-1)
                self.entropies[number] += float(torch.special.entr(p).sum(dtype=torch.float64))
        self.most += len(logits) * np.log(logits.shape[-1])

    @property
    def temperature(self) -> float:
        enough = np.flatnonzero(self.entropies >= SURE * self.most)
        return TEMPERATURES[enough[0]] if len(enough) else TEMPERATURES[-1]


class Labels:
    """Draws gradients at one output; those depend on the seed, the number of the batch and the number of the draw only."""

    def __init__(self, output: Tensor, kind: str, seed: int, batch: int, temperature: float = 1.0) -> None:
        self.output, self.kind, self.source = output.detach(), kind, (seed, batch)
        self.roots = (self.output.float() / temperature).softmax(-1).sqrt() if kind == "logits" else None

    def draw(self, number: int) -> Tensor:
        """Gradient number `number`, of the shape and dtype of the output."""
        state = np.random.SeedSequence([*self.source, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> 1))
        # drawn on the CPU: a generator of another device would give other numbers
        noise = torch.randn(self.output.shape, generator=generator).to(self.output.device)
        if self.roots is not None:
            noise = self.roots * (noise - self.roots * (self.roots * noise).sum(-1, keepdim=True))
        return noise.to(self.output.dtype)
