"""Gradients at the outputs whose second moment is the Fisher matrix, drawn from the network's own output distribution.

    logits   sqrt(p) (e - sqrt(p) <sqrt(p), e>), p = softmax(y): covariance diag(p) - p p^T, that of softmax(y) - one-hot(label) for
             a label drawn from p.  A sure network would draw other labels than its first choice too rarely to be measured; noise
             e of variance one has the same second moment and needs far fewer draws.
    unit     e: y is the mean of a Gaussian of variance one
    values   e, and a factor of 2 since the mean squared error has no 1/2

Some doubt is mixed into p: a share of the uniform distribution over all classes that are not ruled out.  The second moment knows
small errors only.  Where a class seems impossible it says that no error of its logit matters, and errors that are free grow until the
class wins; and a network that learnt its calibration inputs by heart will be less sure of others.  With the doubt d every class keeps
the weight d / classes, so an error of its logit costs about what it may cost before it wins.

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
DOUBT = 0.03  # from 0.02 to 0.05 is the same; 0 took up to 35 % more bytes for networks that are sure of what they saw


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


class Labels:
    """Draws gradients at one output; those depend on the seed, the number of the batch and the number of the draw only."""

    def __init__(self, output: Tensor, kind: str, seed: int, batch: int, doubt: float = DOUBT) -> None:
        self.output, self.kind, self.source = output.detach(), kind, (seed, batch)
        self.roots = _mix(self.output.float(), doubt).sqrt() if kind == "logits" else None

    def draw(self, number: int) -> Tensor:
        """Gradient number `number`, of the shape and dtype of the output."""
        state = np.random.SeedSequence([*self.source, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        # drawn on the CPU: a generator of another device would give other numbers
        noise = torch.randn(self.output.shape, generator=generator).to(self.output.device)
        if self.roots is not None:
            noise = self.roots * (noise - self.roots * (self.roots * noise).sum(-1, keepdim=True))
        return noise.to(self.output.dtype)


def _mix(logits: Tensor, doubt: float) -> Tensor:
    """Probabilities, with this share of the uniform distribution over the classes that are not ruled out (logit -inf)."""
    possible = (logits > -float("inf")).float()
    return (1 - doubt) * logits.softmax(-1) + doubt * possible / possible.sum(-1, keepdim=True)
