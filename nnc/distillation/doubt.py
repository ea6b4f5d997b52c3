"""Temperature for a network that is too sure of the inputs it is distilled on: of others it will be less so."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TEMPERATURES = tuple(2.0 ** (n / 2) for n in range(7))  # 1 to 8
SURE = 0.1  # mean entropy of the predictions, of the most that is possible: below, a network is too sure
CHUNK = 1 << 22  # logits at a time


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
